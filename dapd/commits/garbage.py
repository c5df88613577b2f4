"""The transactions of the garbage collector: delete below the watermark, merge contributions.

Rule D6. An earlier transaction has raised the watermark, so no read shows and no request can ask
for what these delete. Each leaves alone what has changed since it was found. The caller may forget
the returned report ids once they are committed, never before (rule D3).
"""

from __future__ import annotations

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
)
from dapd.datastore.batches import Contribution
from dapd.datastore.leases import Kind
from dapd.datastore.sqlite import Tx
from dapd.protocol.batches import batch_id_range


@dataclass(frozen=True, slots=True)
class Freed:
    """``rows`` that are gone, the report ``ids`` that nothing stored holds any more, and the (kind,
    id) of jobs that somebody may wait for.
    """

    rows: int
    ids: bytes = b""
    waited_for: tuple[tuple[Kind, bytes], ...] = ()


@dataclass(frozen=True, slots=True)
class DroppedBatches:
    """How many contributions went, and with how many of the batches nothing is left to do."""

    rows: int
    done: int


def drop_chunks(
    tx: Tx, task_pk: int, chunk_pks: Sequence[int], expired_before: int, now: int
) -> Freed:
    """Reports that no job took in time are counted, those of jobs that have ended were before."""
    dropped = [chunks.drop(tx, chunk_pk, expired_before) for chunk_pk in chunk_pks]
    if undecided := sum(n for n, _ in dropped):
        counters.add(tx, task_pk, {"aggregate_report_dropped": undecided})
        collections.touch(tx, task_pk, now)  # C3: what a collection waits for has become less
    freed = [ids for _, ids in dropped if ids]
    return Freed(len(freed), b"".join(freed))


def drop_leader_jobs(tx: Tx, task_pk: int, job_pks: Sequence[int]) -> Freed:
    """Ended jobs without chunks, each with its batch if nobody ever contributed to that."""
    gone = [batch for job_pk in job_pks if (batch := leader_jobs.drop(tx, job_pk)) is not None]
    for batch_id in filter(None, set(gone)):
        empty = batches.newest(tx, task_pk, batch_id) is None
        if empty and not outstanding.has_unfinished_job(tx, task_pk, batch_id):
            _forget_batch(tx, task_pk, batch_id)
    return Freed(len(gone))


def drop_helper_jobs(
    tx: Tx, task_pk: int, job_pks: Sequence[int], expired_before: int, now: int
) -> Freed:
    """Jobs with their bodies and tombstones. One that was never verified is counted, unless someone
    is at it: then it is left.
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
    """Responses and identities of jobs whose every bucket is collected (rule A7)."""
    return Freed(sum(helper_jobs.forget(tx, job_pk) for job_pk in job_pks))


def drop_batches(
    tx: Tx, task_pk: int, batch_ids: Sequence[bytes], expired_before: int, most: int
) -> DroppedBatches:
    """Leader-selected batches whose newest report is below the watermark, whole (rule C6): up to
    ``most`` contributions in one transaction, the first of which ends the batch.
    """
    rows = 0
    for done, batch_id in enumerate(batch_ids):
        newest = batches.newest(tx, task_pk, batch_id)
        if newest is not None and newest >= expired_before:
            continue
        if outstanding.has_unfinished_job(tx, task_pk, batch_id):
            continue
        # Before the contributions, so that nothing is ever added to what is left of a batch.
        outstanding.drop(tx, task_pk, batch_id)
        rows += batches.drop_contributions(tx, task_pk, batch_id_range(batch_id), most - rows)
        if batches.newest(tx, task_pk, batch_id) is not None:
            return DroppedBatches(rows, done)
        # After them, so that what is left is never collected again.
        batches.drop_ranges(tx, task_pk, batch_id_range(batch_id), 1)
        if rows >= most:
            return DroppedBatches(rows, done + 1)
    return DroppedBatches(rows, len(batch_ids))


def _forget_batch(tx: Tx, task_pk: int, batch_id: bytes) -> None:
    outstanding.drop(tx, task_pk, batch_id)
    batches.drop_ranges(tx, task_pk, batch_id_range(batch_id), 1)


class ContributionsChangedError(Exception):
    """The contributions are not what they were when they were added up, or their batch is shut."""


def compact_bucket(tx: Tx, task_pk: int, share_pks: Sequence[int], merged: Contribution) -> None:
    """Replace the rows ``share_pks`` of the bucket of ``merged`` by it.

    Raises ``ContributionsChangedError``, which undoes everything.
    """
    if not batches.replace_contributions(tx, task_pk, share_pks, merged):  # D1
        raise ContributionsChangedError
    if batches.bucket_state(tx, task_pk, merged.bucket) is not None:
        raise ContributionsChangedError
