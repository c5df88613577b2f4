"""All that a database has, as text or as ``dapd datastore check`` sees it."""

from __future__ import annotations

from pathlib import Path

from dapd.datastore import Datastore, Tx, open_for_command
from dapd.datastore.check import Finding, check
from dapd.datastore.sqlite import Row


def everything_in(store: Datastore) -> dict[str, list[Row]]:
    """The rows of every table of dapd's."""

    def read(tx: Tx) -> dict[str, list[Row]]:
        tables = tx.all(
            "SELECT name FROM sqlite_master WHERE type = 'table' AND name NOT LIKE 'sqlite%'"
        )
        return {name: tx.all(f"SELECT * FROM {name}") for (name,) in tables}  # noqa: S608 - own names

    return store.read_sync(read)


def findings(database: Path) -> list[Finding]:
    """What ``dapd datastore check`` finds in the database of a daemon that is stopped."""
    opened = open_for_command(database, holder="a test", now=0)
    try:
        return opened.datastore.read_sync(check)
    finally:
        opened.close()
