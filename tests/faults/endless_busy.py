"""A daemon to which waiting for a lock of SQLite means to hang, and that looks at its WAL often.

python tests/faults/endless_busy.py --config FILE
"""

from __future__ import annotations

import sys

from dapd.cli import main
from dapd.datastore import sqlite

WAL_LIMIT_BYTES = 5 << 20
"""Above the 4 MiB after which SQLite itself starts the WAL over."""

if __name__ == "__main__":
    for name, value in (
        ("BUSY_TIMEOUT_MS", 2**31 - 1),
        ("WAL_LIMIT_BYTES", WAL_LIMIT_BYTES),
        ("COMMITS_BETWEEN_WAL_LOOKS", 10),
    ):
        assert hasattr(sqlite, name)
        setattr(sqlite, name, value)
    main(sys.argv[1:])
