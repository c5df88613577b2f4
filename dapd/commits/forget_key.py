"""The transactions that drop what a lost sealing key sealed, in pages (rules F2, D4, C1).

Everything that is lost is counted; ids, marks and collected ranges stay, so no report can be
aggregated twice and no batch collected twice. Only while no daemon runs. Killed in between, it is
run again: what is dropped already is not found any more, and the key's id goes last.
"""

from __future__ import annotations

from collections import Counter
from contextlib import suppress
from dataclasses import dataclass

from dapd.commits.give_up import give_up
from dapd.datastore import batches, chunks, collections, counters, lost, sealed
from dapd.datastore.engines import Tx
from dapd.datastore.sealed import Cell, Column
from dapd.errors import UsageError
from dapd.protocol.batches import BucketRange, batch_id_range, time_bucket
from dapd.protocol.states import LeaderJob
from dapd.protocol.task import Instant

ORDER = (
    sealed.COLLECTION_SHARES,  # first: that a batch was summed decides what of it is lost below
    sealed.BATCH_SHARES,
    sealed.LEADER_STATES,
    sealed.CHUNK_ROWS,
    sealed.PRIVATE_KEYS,
    sealed.VERIFY_KEYS,
    sealed.TOKENS,
)
"""In which order the columns are gone through."""
_TIME_SIZE = 8


@dataclass(frozen=True, slots=True)
class Forgetting:
    """The lost key, and the moment."""

    key_id: bytes
    at: Instant

    @property
    def reason(self) -> str:
        return f"sealing key {self.key_id.hex()} is lost"


def require_lost(tx: Tx, key_id: bytes, configured: list[bytes]) -> None:
    """Raise ``UsageError`` unless the database knows this key and the configuration does not."""
    if key_id in configured:
        raise UsageError(
            f"key {key_id.hex()} is in [datastore] sealing_keys, so nothing is lost; if its file "
            "holds another key than it did, restore the file"
        )
    known = sealed.sealing_key_ids(tx)
    if key_id not in known:
        names = ", ".join(each.hex() for each in known) or "none"
        raise UsageError(f"nothing is sealed with key {key_id.hex()}; in use: {names}")


def usage(tx: Tx, key_id: bytes) -> dict[str, int]:
    """How many values the key sealed, by column; damaged ones are nobody's."""
    counted = {column.name: 0 for column in ORDER}
    for column in ORDER:
        for cell in sealed.cells(tx, column):
            counted[column.name] += _key_ids(column, cell).get(key_id, 0)
    return counted


def forget_page(
    tx: Tx, column: Column, after: int, forgetting: Forgetting
) -> tuple[int | None, Counter[str]]:
    """Drop what the key sealed in the next page: where the one after it begins, ``None`` behind the
    last; and what was counted as lost, by counter.
    """
    cells = sealed.page(tx, column, after)
    total: Counter[str] = Counter()
    for cell in cells:
        if forgetting.key_id in _key_ids(column, cell):
            total += _forget(tx, column, cell.pk, forgetting)
    return (cells[-1].pk if cells else None), total


def forget_id(tx: Tx, key_id: bytes) -> None:
    """The key seals nothing any more: the daemon starts without it."""
    sealed.drop_sealing_key(tx, key_id)


def _key_ids(column: Column, cell: Cell) -> dict[bytes, int]:
    with suppress(ValueError):
        return column.key_ids(cell)
    return {}


def _forget(tx: Tx, column: Column, pk: int, forgetting: Forgetting) -> Counter[str]:
    """Drop one cell; the reports lost with it, by counter."""
    at = forgetting.at
    if column is sealed.COLLECTION_SHARES:
        return _collection(tx, pk, forgetting.reason)
    if column is sealed.BATCH_SHARES:
        return _share(tx, pk, at.now)
    if column is sealed.LEADER_STATES:
        return _job(tx, pk, forgetting)
    if column is sealed.CHUNK_ROWS:
        return _chunk(tx, pk, forgetting)
    if column is sealed.PRIVATE_KEYS:
        lost.drop_private_key(tx, pk, at.safe)
    elif column is sealed.VERIFY_KEYS:
        lost.empty_verify_key(tx, pk)
    else:
        assert column is sealed.TOKENS
        lost.empty_token(tx, pk)
    return Counter()


def _collection(tx: Tx, collection_pk: int, reason: str) -> Counter[str]:
    """The collection fails, and its batch stays shut: the Helper may have been asked for it."""
    failed = collections.give_up(tx, collection_pk, "batchInvalid", reason)
    if failed is None:
        return Counter()
    batches.settle(tx, collection_pk)
    return _counted(tx, failed.task_pk, "contribution_lost", failed.n)


def _share(tx: Tx, share_pk: int, now: int) -> Counter[str]:
    """What is left of the bucket is not its sum any more, so nobody may collect it."""
    share = lost.drop_share(tx, share_pk)
    state = batches.bucket_state(tx, share.task_pk, share.bucket)
    if state is None:
        batches.quarantine(tx, share.task_pk, [_range(share.bucket)])
        collections.touch(tx, share.task_pk, now)
    if state in {"closed", "collected"}:  # it was summed before
        return Counter()
    return _counted(tx, share.task_pk, "contribution_lost", share.n)


def _job(tx: Tx, job_pk: int, forgetting: Forgetting) -> Counter[str]:
    n = give_up(tx, job_pk, LeaderJob.LOST, forgetting.reason, forgetting.at.now)
    return Counter({"aggregate_lost": n})  # which is in the task's counters


def _chunk(tx: Tx, chunk_pk: int, forgetting: Forgetting) -> Counter[str]:
    """Reports that wait are lost; those in a job are lost with it."""
    chunk = lost.chunk(tx, chunk_pk)
    if chunk.state == "assigned" and chunk.job_pk is not None:
        return _job(tx, chunk.job_pk, forgetting)
    if chunk.state != "waiting":
        return Counter()
    chunks.decide(tx, chunk_pk)
    collections.touch(tx, chunk.task_pk, forgetting.at.now)
    return _counted(tx, chunk.task_pk, "aggregate_lost", chunk.n)


def _counted(tx: Tx, task_pk: int, name: str, n: int) -> Counter[str]:
    counters.add(tx, task_pk, {name: n})
    return Counter({name: n})


def _range(bucket: bytes) -> BucketRange:
    if len(bucket) == _TIME_SIZE:
        return BucketRange(bucket, time_bucket(int.from_bytes(bucket, "big") + 1))
    return batch_id_range(bucket)
