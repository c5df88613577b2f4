"""What the garbage collector's tests check: row counts, and the replay index."""

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
    "suspect_batches",
    "collection_jobs",
    "aggregate_share_jobs",
)


def row_counts(store: Datastore) -> dict[str, int]:
    """Count the rows of each table that grows with the reports; leave out empty tables."""

    def count(tx: Tx) -> dict[str, int]:
        found = {}
        for table in GROWING:
            row = tx.one(f"SELECT count(*) FROM {table}")  # noqa: S608 - constants alone
            assert row is not None
            found[table] = row[0]
        return {table: n for table, n in found.items() if n}

    return store.read_sync(count)


def rebuilt_replay_index(path: Path, task_pk: int, ids: bytes) -> tuple[int, bytes]:
    """Rebuild the replay index as a new process would: (how many ids it has, which of these)."""
    store = Engine(path, _lost)
    try:
        index: ReplayIndex = store.replay
        store.read_sync(replay.rebuild)
        return len(index), index.peek(task_pk, ids)
    finally:
        store.close()


def _lost(message: str) -> None:
    raise AssertionError(message)
