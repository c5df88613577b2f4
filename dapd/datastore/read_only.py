"""Read a database without changing it, whether a daemon has it or not.

This takes no lock, creates no database and migrates nothing. Files that no process writes, such as
backups, are read by ``dapd.datastore.backup.connect_read_only``.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

from dapd.datastore.files import read_only_uri
from dapd.datastore.migrate import check_version, pending
from dapd.datastore.sqlite import APPLICATION_ID, BUSY_TIMEOUT_MS, Tx, explain
from dapd.errors import UnfitDatastore
from dapd.reports import ReplayIndex


@contextmanager
def snapshot(path: Path) -> Iterator[tuple[Tx, bool]]:
    """Yield a read-only transaction, and whether its schema is this program's.

    If the schema is older, no table may be read. Raises ``DatastoreError``.
    """
    try:
        with closing(sqlite3.connect(read_only_uri(path), uri=True, isolation_level=None)) as found:
            found.execute(f"PRAGMA busy_timeout = {BUSY_TIMEOUT_MS}")
            found.execute("BEGIN")
            if found.execute("PRAGMA application_id").fetchone()[0] != APPLICATION_ID:
                raise UnfitDatastore(
                    f"{path} is not a dapd database; set [datastore] path to another file"
                )
            check_version(found, path, may_be_older=True)
            yield Tx(found, ReplayIndex()), not pending(found)
    except sqlite3.Error as error:
        raise explain(error, path) from error
