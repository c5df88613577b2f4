"""What the garbage collector's tests look at: how many rows there are, and the replay index."""

from __future__ import annotations

from pathlib import Path

from dapd.datastore import Datastore, Tx, replay
from dapd.datastore.sqlite import Datastore as Engine
from dapd.reports import ReplayIndex

GROWING = (
    "report_chunks",
    "chunk_rows",
    "aggregation_jobs",
    "job_bodies",
    "batch_shares",
    "collected",
    "outstanding_batches",
    "collection_jobs",
    "aggregate_share_jobs",
)


def rows(store: Datastore) -> dict[str, int]:
    """The tables that grow with the reports, and how many rows each has, if any."""

    def count(tx: Tx) -> dict[str, int]:
        found = {}
        for table in GROWING:
            row = tx.one(f"SELECT count(*) FROM {table}")  # noqa: S608 - constants alone
            assert row is not None
            found[table] = row[0]
        return {table: n for table, n in found.items() if n}

    return store.read_sync(count)


def rebuilt(path: Path, task_pk: int, ids: bytes) -> tuple[int, bytes]:
    """(how many ids, which of these) a process that starts now would hold for admitted."""
    store = Engine(path, _lost)
    try:
        index: ReplayIndex = store.replay
        store.read_sync(replay.rebuild)
        return len(index), index.peek(task_pk, ids)
    finally:
        store.close()


def _lost(message: str) -> None:
    raise AssertionError(message)
