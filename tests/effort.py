"""How much is done, in numbers that are the same on any machine: instructions of SQLite's virtual
machine, and transactions in the writer.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from dapd.datastore import Tx
from dapd.datastore.sqlite import connect
from dapd.reports import ReplayIndex
from dapd.runtime.context import Context


@dataclass
class Effort:
    """The number of instructions so far."""

    steps: int = 0


@contextmanager
def counting(path: Path) -> Iterator[tuple[Tx, Effort]]:
    """A transaction on the database of another connection, which is rolled back in the end."""
    connection = connect(path)
    effort = Effort()

    def count() -> int:
        effort.steps += 1
        return 0

    connection.execute("BEGIN")
    connection.set_progress_handler(count, 1)
    try:
        yield Tx(connection, ReplayIndex()), effort
    finally:
        connection.set_progress_handler(None, 0)
        connection.execute("ROLLBACK")
        connection.close()


def writes(context: Context) -> int:
    """How many transactions have occupied the writer."""
    [family] = context.metrics.transaction_seconds.collect()
    return int(sum(each.value for each in family.samples if each.name.endswith("_count")))
