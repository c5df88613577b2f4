"""The transaction that aggregates a Leader's job: contributions in, chunks out, once (I1, D1).

Sections "Leader Initialization" and "Batch Buckets"; rules B6, D5.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from dapd.datastore import batches, chunks, collections, counters, leader_jobs, tasks
from dapd.datastore.chunks import Place
from dapd.datastore.engines import Tx
from dapd.datastore.leader_jobs import Job
from dapd.datastore.leases import Lease
from dapd.protocol.batches import batch_id_range
from dapd.protocol.states import LeaderJob
from dapd.reports import BucketTotal, ReportError, count_outcomes, mask_of, outcome_name


@dataclass(frozen=True, slots=True)
class Result:
    """The outcomes of a job's reports and what they add up to.

    ``answered`` if a Helper gave them; ``retry_at`` says when (ms) a report that was too early
    for it comes again, after so many attempts.
    """

    outcomes: bytes
    buckets: Sequence[BucketTotal]
    answered: bool
    retry_at: Callable[[int], int]


def finish(tx: Tx, lease: Lease, job: Job, result: Result, now: int) -> None:
    """Store what the job contributes, count every outcome. Raises ``LeaseLost``."""
    leader_jobs.end(tx, lease, job, LeaderJob.FINISHED)
    batches.add_contributions(tx, job.task_pk, job.id, result.buckets)
    if job.batch_id:
        _leave_closed_batch(tx, job, result.outcomes)
    at = 0
    for chunk_pk, n in chunks.sizes_of_job(tx, job.job_pk):
        _decide(tx, chunk_pk, result.outcomes[at : at + n], bool(job.batch_id), result.retry_at)
        at += n
    counters.add(tx, job.task_pk, _counts(result.outcomes))
    if result.answered:
        tasks.note_peer_accepted(tx, job.task_pk)
    collections.touch(tx, job.task_pk, now)


def _leave_closed_batch(tx: Tx, job: Job, outcomes: bytes) -> None:
    """The Helper has closed a leader-selected batch of which this Leader knows no collection, as
    one that was restored does: no more reports are lost in it.
    """
    refused = any(mask_of(outcomes, ReportError.BATCH_COLLECTED))
    if refused and batches.bucket_state(tx, job.task_pk, job.batch_id) is None:
        batches.quarantine(tx, job.task_pk, [batch_id_range(job.batch_id)])


def _decide(
    tx: Tx, chunk_pk: int, outcomes: bytes, in_batch: bool, retry_at: Callable[[int], int]
) -> None:
    """End the chunk; reports that were too early wait for another job (D5)."""
    early = mask_of(outcomes, ReportError.REPORT_TOO_EARLY)
    if not any(early):
        chunks.decide(tx, chunk_pk)
        return
    chunk = chunks.load(tx, chunk_pk)
    attempts = chunk.attempts + 1
    bucket = b"" if in_batch else chunk.bucket  # another batch may take them
    later = Place(chunk.task_pk, chunk.seq, bucket, retry_at(attempts), attempts)
    if all(early):
        chunks.hand_over(tx, chunk_pk, later)
    else:
        chunks.cut_off(tx, chunk, early, later)


def _counts(outcomes: bytes) -> dict[str, int]:
    """Reports that wait for another job are counted when that has decided them."""
    return {
        f"aggregate_{outcome_name(code) if code else 'finished'}": n
        for code, n in count_outcomes(outcomes).items()
        if code != ReportError.REPORT_TOO_EARLY
    }
