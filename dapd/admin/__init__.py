"""The admin interface: how an operator looks at a running daemon, and changes it (rule E5).

It is on a Unix socket that only the daemon's user and group can open, apart from the listener that
the world sees, and on a second one over TCP (``dapd.admin.access``). ``OPERATIONS`` are all
that change it or tell of it, one function each: what is declared there is routed, decoded, checked
and audited by ``dapd.admin.app``, and called by ``dapd.cli.daemon``.
"""

from __future__ import annotations

from typing import Any

from dapd.admin import clock, jobs, log, peers, reload, restore, status
from dapd.admin.operation import Operation

OPERATIONS: tuple[Operation[Any, Any], ...] = (
    clock.SHOW,
    clock.ACCEPT,
    restore.ACCEPT,
    reload.RELOAD,
    status.SHOW,
    jobs.LIST,
    jobs.SHOW,
    jobs.RETRY,
    jobs.ABANDON,
    peers.LIST,
    peers.SHOW,
    peers.PAUSE,
    peers.RESUME,
    peers.PROBE,
    log.SHOW,
    log.SET,
)
