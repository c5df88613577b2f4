"""The transactions about sealing keys: require them at start, reseal with a new one, forget one.

Rules F2, D4, C1. Both resealing and forgetting work through the sealed columns in pages, and may be
killed and run again. Resealing keeps a value that another transaction has changed since it was
read. It passes over the columns in ascending order until one pass finds nothing. Forgetting runs
only without a daemon. It counts everything that is lost, and keeps ids, watermarks and collected
ranges, so that no report is aggregated twice and no batch collected twice.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import assert_never

from dapd.commits.collections import discard_given_up
from dapd.commits.leader_jobs import give_up_job
from dapd.datastore import batches, chunks, collections, counters, sealed, unsealable
from dapd.datastore.sealed import Cell, Column
from dapd.datastore.sqlite import Tx
from dapd.errors import UsageError
from dapd.protocol.batches import bucket_range
from dapd.protocol.states import ChunkState, LeaderJobState, RangeState
from dapd.protocol.task import Instant


def check_sealing_keys(tx: Tx, held: Sequence[bytes]) -> None:
    """Check the configured keys and note that the first one seals from now on (rule F2).

    ``held`` are their ids. Raises ``UsageError`` as ``require_sealing_keys`` does.
    """
    require_sealing_keys(tx, held)
    if held[0] not in sealed.sealing_key_ids(tx):
        sealed.note_sealing_key(tx, held[0])


def require_sealing_keys(tx: Tx, held: Sequence[bytes]) -> None:
    """Raise ``UsageError``, naming each missing key, unless ``held`` has every key in use."""
    known = sealed.sealing_key_ids(tx)
    if missing := [key_id for key_id in known if key_id not in held]:
        names = ", ".join(key_id.hex() for key_id in missing)
        raise UsageError(
            f"the database contains values sealed with key {names}, which is not in [datastore] "
            "sealing_keys; add that key's file to the list, or if it is lost for good, see "
            "`dapd datastore forget-key --help`"
        )


@dataclass(frozen=True, slots=True)
class ResealStanding:
    """The progress of resealing: the ids of ``others`` that values may still be sealed with, and
    the row up to which each column is done.
    """

    others: list[bytes]
    progress: dict[str, int]


def reseal_standing(tx: Tx, key_id: bytes) -> ResealStanding:
    """Return the progress of resealing with this key."""
    others = [other for other in sealed.sealing_key_ids(tx) if other != key_id]
    return ResealStanding(others, sealed.progress(tx, key_id))


def replace_values(
    tx: Tx, column: Column, values: Sequence[tuple[Cell, bytes]], key_id: bytes, after: int
) -> int:
    """Store resealed values, and note that all rows up to ``after`` are done.

    A cell that has changed since it was read stays as it is. Return the number of those replaced.
    """
    replaced = sum(sealed.replace(tx, column, cell, value) for cell, value in values)
    sealed.note_progress(tx, column, key_id, after)
    return replaced


def finish_reseal(tx: Tx, key_id: bytes, others: Sequence[bytes]) -> bool:
    """Note that the ``others`` seal nothing any more, so their files may be deleted.

    Return ``False`` if one still does. A pass has checked all columns before. But commands write
    two tables beside the daemon (rule E5), perhaps with an older configuration; these are small,
    so check them again here.
    """
    columns = (sealed.VERIFY_KEYS, sealed.TOKENS, sealed.PRIVATE_KEYS)
    if any(
        column.is_stale(cell, key_id) for column in columns for cell in sealed.cells(tx, column)
    ):
        return False
    for other in others:
        sealed.drop_sealing_key(tx, other)
    sealed.clear_progress(tx)
    return True


ORDER = (
    sealed.COLLECTION_SHARES,  # first, because a summed batch loses nothing with BATCH_SHARES
    sealed.BATCH_SHARES,
    sealed.LEADER_STATES,
    sealed.CHUNK_ROWS,
    sealed.PRIVATE_KEYS,
    sealed.VERIFY_KEYS,
    sealed.TOKENS,
)
"""The order in which forgetting goes through the columns."""


@dataclass(frozen=True, slots=True)
class Forgetting:
    """The id of the lost key, and the time of forgetting it."""

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
            "was overwritten with another key, restore the file"
        )
    known = sealed.sealing_key_ids(tx)
    if key_id not in known:
        names = ", ".join(each.hex() for each in known) or "none"
        raise UsageError(f"nothing is sealed with key {key_id.hex()}; in use: {names}")


def key_usage(tx: Tx, key_id: bytes) -> dict[str, int]:
    """Count the values that the key sealed, by column, ignoring damaged ones."""
    counted = {column.name: 0 for column in ORDER}
    for column in ORDER:
        for cell in sealed.cells(tx, column):
            counted[column.name] += _key_ids(column, cell).get(key_id, 0)
    return counted


def forget_page(
    tx: Tx, column: Column, after: int, forgetting: Forgetting
) -> tuple[int | None, Counter[str]]:
    """Drop the values of the next page that the key sealed.

    Return the start of the following page (``None`` after the last), and what was counted as lost,
    by counter.
    """
    cells = sealed.page(tx, column, after)
    total: Counter[str] = Counter()
    for cell in cells:
        if forgetting.key_id in _key_ids(column, cell):
            total += _forget_cell(tx, column, cell.pk, forgetting)
    return (cells[-1].pk if cells else None), total


def forget_id(tx: Tx, key_id: bytes) -> None:
    """Note that the key seals nothing any more, so that the daemon starts without it."""
    sealed.drop_sealing_key(tx, key_id)


def _key_ids(column: Column, cell: Cell) -> dict[bytes, int]:
    with suppress(ValueError):
        return column.key_ids(cell)
    return {}


def _forget_cell(tx: Tx, column: Column, pk: int, forgetting: Forgetting) -> Counter[str]:
    """Drop one cell; return the reports lost with it, by counter."""
    at = forgetting.at
    if column is sealed.COLLECTION_SHARES:
        return _forget_collection(tx, pk, forgetting.reason)
    if column is sealed.BATCH_SHARES:
        return _forget_share(tx, pk, at.now)
    if column is sealed.LEADER_STATES:
        return _forget_job(tx, pk, forgetting)
    if column is sealed.CHUNK_ROWS:
        return _forget_chunk(tx, pk, forgetting)
    if column is sealed.PRIVATE_KEYS:
        unsealable.drop_private_key(tx, pk, at.safe)
    elif column is sealed.VERIFY_KEYS:
        unsealable.empty_verify_key(tx, pk)
    else:
        assert column is sealed.TOKENS
        unsealable.empty_token(tx, pk)
    return Counter()


def _forget_collection(tx: Tx, collection_pk: int, reason: str) -> Counter[str]:
    """Fail the collection, unless it was given up before; its batch stays closed, as the Helper may
    have been asked for it.
    """
    if lost := discard_given_up(tx, collection_pk, "contribution_lost"):
        return Counter({"contribution_lost": lost})
    failed = collections.give_up(tx, collection_pk, "batchInvalid", reason)
    if failed is None:
        return Counter()
    batches.mark_collected(tx, collection_pk)
    return _counted(tx, failed.task_pk, "contribution_lost", failed.n)


def _forget_share(tx: Tx, share_pk: int, now: int) -> Counter[str]:
    """Drop one contribution, and close its bucket: the rest is not the true sum any more."""
    share = unsealable.drop_share(tx, share_pk)
    state = batches.bucket_state(tx, share.task_pk, share.bucket)
    if state is None:
        batches.quarantine(tx, share.task_pk, [bucket_range(share.bucket)])
        collections.touch(tx, share.task_pk, now)
    if state in (RangeState.CLOSED, RangeState.GIVEN_UP, RangeState.COLLECTED):  # it was summed
        return Counter()
    return _counted(tx, share.task_pk, "contribution_lost", share.n)


def _forget_job(tx: Tx, job_pk: int, forgetting: Forgetting) -> Counter[str]:
    n = give_up_job(tx, job_pk, LeaderJobState.LOST, forgetting.reason, forgetting.at.now)
    return Counter({"aggregate_lost": n})  # give_up_job has added it to the task's counters


def _forget_chunk(tx: Tx, chunk_pk: int, forgetting: Forgetting) -> Counter[str]:
    """Drop one chunk: waiting reports are lost alone, assigned ones with their job."""
    chunk = unsealable.chunk(tx, chunk_pk)
    match chunk.state:
        case ChunkState.WAITING:
            chunks.decide(tx, chunk_pk)
            collections.touch(tx, chunk.task_pk, forgetting.at.now)
            return _counted(tx, chunk.task_pk, "aggregate_lost", chunk.n)
        case ChunkState.ASSIGNED:
            job_pk = chunk.job_pk
            return Counter() if job_pk is None else _forget_job(tx, job_pk, forgetting)
        case ChunkState.DECIDED:
            return Counter()
        case _:
            assert_never(chunk.state)


def _counted(tx: Tx, task_pk: int, name: str, n: int) -> Counter[str]:
    counters.add(tx, task_pk, {name: n})
    return Counter({name: n})
