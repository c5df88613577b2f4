"""All that a database has, to see that a transaction has changed nothing."""

from __future__ import annotations

from dapd.datastore import Datastore, Tx
from dapd.datastore.sqlite import Row


def everything_in(store: Datastore) -> dict[str, list[Row]]:
    """The rows of every table of dapd's."""

    def read(tx: Tx) -> dict[str, list[Row]]:
        tables = tx.all(
            "SELECT name FROM sqlite_master WHERE type = 'table' AND name NOT LIKE 'sqlite%'"
        )
        return {name: tx.all(f"SELECT * FROM {name}") for (name,) in tables}  # noqa: S608 - own names

    return store.read_sync(read)
