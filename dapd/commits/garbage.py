"""The transactions of the garbage collector: delete below the watermark, merge contributions.

Rule D6. An earlier transaction has raised the watermark, so reads already hide and requests already
refuse what these delete. Rows that have changed since the caller found them stay. The caller must
not forget the returned report ids before the commit (rule D3).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from dapd.datastore import (
    batches,
    chunks,
    collections,
    counters,
    helper_jobs,
    leader_jobs,
    outstanding,
    suspects,
)
from dapd.datastore.batches import Contribution
from dapd.datastore.sqlite import Tx
from dapd.protocol.batches import BucketRange, batch_id_range
from dapd.protocol.states import Kind, RangeState
from dapd.protocol.task import Task


@dataclass(frozen=True, slots=True)
class Freed:
    """The result of a deletion: the number of rows, the report ids that are no longer stored, the
    (kind, id) of deleted jobs that a held request may wait for, and the Locations of jobs that the
    Helper need not keep.
    """

    rows: int
    ids: bytes = b""
    waited_for: tuple[tuple[Kind, bytes], ...] = ()
    locations: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class DroppedBatches:
    """The number of deleted contributions, and of batches with which nothing is left to do."""

    rows: int
    done: int


def drop_chunks(
    tx: Tx, task_pk: int, chunk_pks: Sequence[int], expired_before: int, now: int
) -> Freed:
    """Delete chunks, and count the undecided reports: no job took them before they expired."""
    dropped = [chunks.drop(tx, chunk_pk, expired_before) for chunk_pk in chunk_pks]
    if undecided := sum(n for n, _ in dropped):
        counters.add(tx, task_pk, {"aggregate_report_dropped": undecided})
        collections.touch(tx, task_pk, now)  # C3: what a collection waits for has become less
    freed = [ids for _, ids in dropped if ids]
    return Freed(len(freed), b"".join(freed))


def drop_leader_jobs(tx: Tx, task_pk: int, job_pks: Sequence[int]) -> Freed:
    """Delete ended jobs without chunks, each with its batch if no job ever contributed to that."""
    gone = [batch for job_pk in job_pks if (batch := leader_jobs.drop(tx, job_pk)) is not None]
    for batch_id in filter(None, set(gone)):
        empty = batches.newest(tx, task_pk, batch_id) is None
        if empty and not outstanding.has_unfinished_job(tx, task_pk, batch_id):
            _forget_batch(tx, task_pk, batch_id)
    return Freed(len(gone))


def drop_helper_jobs(
    tx: Tx, task_pk: int, job_pks: Sequence[int], expired_before: int, now: int
) -> Freed:
    """Delete jobs with their bodies, or their tombstones. Count the reports of a job that was never
    verified; leave a job that is leased.
    """
    dropped = [
        job
        for job_pk in job_pks
        if (job := helper_jobs.drop(tx, job_pk, expired_before, now)) is not None
    ]
    counters.add(tx, task_pk, {"aggregate_report_dropped": sum(job.undecided for job in dropped)})
    return Freed(
        len(dropped),
        b"".join(job.admitted_ids for job in dropped),
        tuple(("aggregation", job.id) for job in dropped if job.undecided),
    )


def forget_answers(tx: Tx, job_pks: Sequence[int]) -> Freed:
    """Delete the responses and identities of jobs whose buckets are all collected (rule A7)."""
    return Freed(sum(helper_jobs.forget(tx, job_pk) for job_pk in job_pks))


def drop_buckets(tx: Tx, task_pk: int, past: BucketRange, most: int) -> int:
    """Delete up to ``most`` contributions to expired buckets; return their number.

    Reports that no collection has taken are counted.
    """
    dropped = batches.drop_contributions(tx, task_pk, past, most)
    _count_uncollected(tx, task_pk, dropped)
    suspects.drop(tx, task_pk, past)
    return len(dropped)


def drop_batches(
    tx: Tx, task: Task, batch_ids: Sequence[bytes], expired_before: int, most: int
) -> DroppedBatches:
    """Delete whole leader-selected batches whose newest report is below the watermark (rule C6).

    One call deletes up to ``most`` contributions; its first deletion ends the batch. A Helper keeps
    its id closed for another expiry age, since a job that its Leader sent in time may come late.
    Reports that no collection has taken are counted.
    """
    rows, task_pk = 0, task.task_pk
    for done, batch_id in enumerate(batch_ids):
        batch = batch_id_range(batch_id)
        newest = batches.newest(tx, task_pk, batch_id)
        if newest is not None and newest >= expired_before:
            continue
        if outstanding.has_unfinished_job(tx, task_pk, batch_id):
            continue
        # These come before the contributions, so that no job adds to a batch in deletion.
        if task.is_leader:
            outstanding.drop(tx, task_pk, batch_id)
            suspects.drop(tx, task_pk, batch)
        elif newest is not None:
            batches.expire(tx, task_pk, batch, newest)
        dropped = batches.drop_contributions(tx, task_pk, batch, most - rows)
        _count_uncollected(tx, task_pk, dropped)
        rows += len(dropped)
        if batches.newest(tx, task_pk, batch_id) is not None:
            return DroppedBatches(rows, done)
        # This comes after them, so that no collection takes a batch in deletion.
        if task.is_leader:
            batches.drop_ranges(tx, task_pk, batch, 1)
        if rows >= most:
            return DroppedBatches(rows, done + 1)
    return DroppedBatches(rows, len(batch_ids))


def _count_uncollected(tx: Tx, task_pk: int, dropped: Sequence[tuple[bytes, int]]) -> None:
    totals: Counter[bytes] = Counter()
    for bucket, n in dropped:
        totals[bucket] += n
    # What a collection that was given up keeps is counted when it expires.
    collected = (RangeState.CLOSED, RangeState.GIVEN_UP, RangeState.COLLECTED)
    n = sum(
        n
        for bucket, n in totals.items()
        if batches.bucket_state(tx, task_pk, bucket) not in collected
    )
    counters.add(tx, task_pk, {"contribution_dropped": n})


def _forget_batch(tx: Tx, task_pk: int, batch_id: bytes) -> None:
    outstanding.drop(tx, task_pk, batch_id)
    suspects.drop(tx, task_pk, batch_id_range(batch_id))
    batches.drop_ranges(tx, task_pk, batch_id_range(batch_id), 1)


class ContributionsChangedError(Exception):
    """The contributions have changed since they were added up, or their batch is closed."""


def compact_bucket(tx: Tx, task_pk: int, share_pks: Sequence[int], merged: Contribution) -> None:
    """Replace the contributions ``share_pks`` of one bucket by their sum ``merged``.

    Raises ``ContributionsChangedError``, which undoes everything.
    """
    if not batches.replace_contributions(tx, task_pk, share_pks, merged):  # D1
        raise ContributionsChangedError
    if batches.bucket_state(tx, task_pk, merged.bucket) is not None:
        raise ContributionsChangedError
