"""Thresholds from which on an operator must act.

The alert rules (``packaging/prometheus/alerts.yml``) have the same numbers: a test compares them.
How much disk must be free is no constant but the configuration's ``[disk] min_free_bytes``.
"""

from __future__ import annotations

from datetime import timedelta

BACKUP_AGE = timedelta(days=2)
"""A nightly backup has failed twice."""
CERTIFICATE_LEFT = timedelta(days=21)
"""ACME clients renew a month ahead: three weeks mean that renewing has failed."""
CERTIFICATE_URGENT = timedelta(days=7)
"""From here on the alert is a page."""
COLLECT_WITHIN = timedelta(days=1)
"""Before uncollected reports expire."""
PEER_SILENT = timedelta(minutes=5)
"""A shorter silence may be a restart of the peer."""
PEER_DOWN = timedelta(hours=1)
"""For the alert, which disturbs people; `dapd status` says it from ``PEER_SILENT`` on."""
JOB_STUCK = timedelta(days=1)
"""The age of a job whose peer serves."""
NOTHING_AGGREGATED = timedelta(minutes=15)
"""Nothing was aggregated for so long, although work waits."""
CLOCK_OFF = timedelta(minutes=1)
"""Between this machine's clock and another one. Clients' may be five minutes ahead, and the safe
clock holds at five minutes from the peers'.
"""
