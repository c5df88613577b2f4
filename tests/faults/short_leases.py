"""A daemon whose leases end after a moment, so that one that is stopped for longer loses them.

python tests/faults/short_leases.py --config FILE
"""

from __future__ import annotations

import sys

from dapd.cli import main
from dapd.datastore import leases
from dapd.driver import dispatcher, helper_job

LEASE_MS = 300


def shorten() -> None:
    """For the rest of this process."""
    for module in (leases, dispatcher, helper_job):
        setattr(module, "LEASE_MS", LEASE_MS)  # noqa: B010 - mypy: two of them only import it


if __name__ == "__main__":
    shorten()
    main(sys.argv[1:])
