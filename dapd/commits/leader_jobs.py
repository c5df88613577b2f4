"""The transactions of a Leader's aggregation job: start, send, wait, finish, halve, give up.

Sections "Leader Initialization" and "Batch Buckets"; invariants I1, I3; rules B6, D1, D4, D5, D6.
``dapd.commits.create_jobs`` creates the jobs, ``dapd.protocol.exchange`` judges the answers.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from dapd.datastore import (
    batches,
    chunks,
    collections,
    counters,
    leader_jobs,
    outstanding,
    suspects,
    tasks,
    watermarks,
)
from dapd.datastore.chunks import Place, StoredChunk
from dapd.datastore.leader_jobs import Job
from dapd.datastore.leases import Lease
from dapd.datastore.sqlite import Tx
from dapd.protocol.batches import batch_id_range
from dapd.protocol.exchange import Later
from dapd.protocol.states import LeaderJobState
from dapd.protocol.task import Instant, Task
from dapd.reports import BucketTotal, ReportError, count_outcomes, mask_of, outcome_name


def start_job(
    tx: Tx, lease: Lease, request: bytes, leader_state: bytes, now: int, send: bool
) -> None:
    """Store the exact request and the verification state. With ``send`` the job stays leased and
    its first send is counted; else it is released, due now. Raises ``LeaseLost``.
    """
    later = Later(None, now, 0, 1 if send else 0)
    states = LeaderJobState.ASSIGNED, LeaderJobState.STORED
    leader_jobs.move(tx, lease, states, later, keep_lease=send)
    leader_jobs.store_bodies(tx, lease.pk, request, leader_state)


def count_send(tx: Tx, lease: Lease, task: Task, at: Instant) -> Job | LeaderJobState:
    """Count a send of the stored bytes before it happens, and load the job. Instead, end a job
    whose reports have expired, or one that was never sent and whose batch takes no more; then
    return the state that it ended in. Raises ``LeaseLost``.
    """
    job = leader_jobs.load(tx, lease)
    if job.newest < task.expired_before_at(at):  # D6
        expire_job(tx, lease.pk, at.now)
        return LeaderJobState.EXPIRED
    if not job.sends and batch_takes_no_more(tx, task, job, at):
        dissolve_job(tx, lease, job, at.now)
        return LeaderJobState.ABANDONED
    leader_jobs.count_send(tx, lease)
    return leader_jobs.load(tx, lease)


def batch_takes_no_more(tx: Tx, task: Task, job: Job, at: Instant) -> bool:
    """Return whether the job's leader-selected batch is suspect (rule D4), or the Helper may have
    dropped it before it commits the job (rule C6). What keeps a batch alive on both sides is its
    newest committed report.
    """
    if not job.batch_id:
        return False
    if suspects.has(tx, job.task_pk, job.batch_id):
        return True
    newest = batches.newest(tx, job.task_pk, job.batch_id)
    return newest is not None and newest < watermarks.expiring_before(tx, task, at)


def dissolve_job(tx: Tx, lease: Lease, job: Job, now: int) -> None:
    """End a job that was never sent; its reports wait for another batch. Raises ``LeaseLost``."""
    held = chunks.of_job(tx, job.job_pk)
    leader_jobs.end(tx, lease, job, LeaderJobState.ABANDONED, "its batch takes no more reports")
    for chunk in held:
        waiting = Place(chunk.task_pk, chunk.seq, b"", chunk.run_at, chunk.attempts)
        chunks.reassign(tx, chunk.chunk_pk, waiting)
    _forget_empty_batch(tx, job.task_pk, job.batch_id)
    collections.touch(tx, job.task_pk, now)


def release_job(tx: Tx, lease: Lease, old: LeaderJobState, later: Later) -> None:
    """Release the job until its next exchange (I5). Raises ``LeaseLost``."""
    new = LeaderJobState.STORED if later.location is None else LeaderJobState.POLLING
    leader_jobs.move(tx, lease, (old, new), later)


@dataclass(frozen=True, slots=True)
class Result:
    """The outcomes of a job's reports, and the totals of those that count.

    ``answered`` is true if the Helper answered. ``retry_at`` returns when (ms) to retry a report
    that the Helper found too early, given the number of attempts.
    """

    outcomes: bytes
    buckets: Sequence[BucketTotal]
    answered: bool
    retry_at: Callable[[int], int]


def finish_job(tx: Tx, lease: Lease, job: Job, result: Result, now: int) -> None:
    """Store the job's contributions and count every outcome. Raises ``LeaseLost``."""
    leader_jobs.end(tx, lease, job, LeaderJobState.FINISHED)
    batches.add_contributions(tx, job.task_pk, job.id, result.buckets)
    if job.batch_id:
        _leave_closed_batch(tx, job, result.outcomes)
        _forget_empty_batch(tx, job.task_pk, job.batch_id)
    at = 0
    for chunk_pk, n in chunks.sizes_of_job(tx, job.job_pk):
        _decide(tx, chunk_pk, result.outcomes[at : at + n], bool(job.batch_id), result.retry_at)
        at += n
    counters.add(tx, job.task_pk, _counts(result.outcomes))
    if result.answered:
        tasks.note_peer_accepted(tx, job.task_pk)
    collections.touch(tx, job.task_pk, now)


def _leave_closed_batch(tx: Tx, job: Job, outcomes: bytes) -> None:
    """Quarantine a leader-selected batch that the Helper has closed without our knowing of a
    collection, as happens to a restored Leader: so no more reports are lost in it.
    """
    refused = any(mask_of(outcomes, ReportError.BATCH_COLLECTED))
    if refused and batches.bucket_state(tx, job.task_pk, job.batch_id) is None:
        batches.quarantine(tx, job.task_pk, [batch_id_range(job.batch_id)])


def _decide(
    tx: Tx, chunk_pk: int, outcomes: bytes, in_batch: bool, retry_at: Callable[[int], int]
) -> None:
    """Mark the chunk as decided; reports that were too early wait for another job (D5)."""
    early = mask_of(outcomes, ReportError.REPORT_TOO_EARLY)
    if not any(early):
        chunks.decide(tx, chunk_pk)
        return
    chunk = chunks.load(tx, chunk_pk)
    attempts = chunk.attempts + 1
    bucket = b"" if in_batch else chunk.bucket  # another batch may take them
    later = Place(chunk.task_pk, chunk.seq, bucket, retry_at(attempts), attempts)
    if all(early):
        chunks.reassign(tx, chunk_pk, later)
    else:
        chunks.cut_off(tx, chunk, early, later)


def _counts(outcomes: bytes) -> dict[str, int]:
    """Return the counts by counter, without reports that wait for another job to decide them."""
    return {
        f"aggregate_{outcome_name(code) if code else 'finished'}": n
        for code, n in count_outcomes(outcomes).items()
        if code != ReportError.REPORT_TOO_EARLY
    }


@dataclass(frozen=True, slots=True)
class Halves:
    """The ids of the two new jobs. ``retry_at`` returns when (ms) to start them, given the number
    of attempts.
    """

    ids: tuple[bytes, bytes]
    retry_at: Callable[[int], int]


def halve_job(tx: Tx, lease: Lease, job: Job, halves: Halves, error: str, now: int) -> bool:
    """Put the reports of a job that was refused for good into two new ones (D5). A single report
    is rejected and counted instead; then return ``False``. Raises ``LeaseLost``.
    """
    held = chunks.of_job(tx, job.job_pk)
    leader_jobs.end(tx, lease, job, LeaderJobState.ABANDONED, error)
    if job.n == 1:
        for chunk in held:
            chunks.decide(tx, chunk.chunk_pk)
        counters.add(tx, job.task_pk, {"aggregate_invalid_message": 1})
        collections.touch(tx, job.task_pk, now)
        return False
    attempts = 1 + max(chunk.attempts for chunk in held)
    first_size = job.n // 2
    run_at = halves.retry_at(attempts)
    pks = []
    for job_id, n in zip(halves.ids, (first_size, job.n - first_size), strict=True):
        new = leader_jobs.NewJob(job_id, job.task_pk, n, job.batch_id, run_at, now)
        pks.append(leader_jobs.insert(tx, new))
    before = 0
    for chunk in held:
        in_first = min(max(first_size - before, 0), chunk.n)
        _hand_over(tx, chunk, in_first, (pks[0], pks[1]), attempts)
        before += chunk.n
    for job_pk in pks:
        leader_jobs.note_newest(tx, job_pk)
    return True


def _hand_over(
    tx: Tx, chunk: StoredChunk, in_first: int, jobs: tuple[int, int], attempts: int
) -> None:
    """Give the chunk's first rows to the first job, the others to the second."""
    first, second = (
        Place(chunk.task_pk, chunk.seq, chunk.bucket, chunk.run_at, attempts, job) for job in jobs
    )
    if 0 < in_first < chunk.n:
        keep = bytes([1]) * in_first + bytes(chunk.n - in_first)
        chunks.split(tx, chunk, keep, first, second)
    else:
        chunks.reassign(tx, chunk.chunk_pk, first if in_first else second)


def expire_job(tx: Tx, job_pk: int, now: int) -> int:
    """End a job whose newest report is below the watermark. Return as ``give_up_job`` does."""
    return give_up_job(tx, job_pk, LeaderJobState.EXPIRED, "its reports expired", now)


def give_up_refused_job(
    tx: Tx, lease: Lease, state: LeaderJobState, sends: int, reason: str, now: int
) -> int:
    """End a job that the Helper has refused for too long (D4). Return as ``give_up_job`` does.

    ``sends`` counts the sends whose outcome is unknown. Raises ``LeaseLost``.
    """
    last = Later(None, now, 0, sends)
    leader_jobs.move(tx, lease, (state, LeaderJobState.STORED), last, keep_lease=True)  # D1
    return give_up_job(tx, lease.pk, LeaderJobState.LOST, reason, now)


def give_up_job(
    tx: Tx,
    job_pk: int,
    state: Literal[LeaderJobState.EXPIRED, LeaderJobState.LOST],
    reason: str,
    now: int,
) -> int:
    """End an unfinished job and count its reports: as dropped if they expired unsent, else as lost.

    Return their number; 0 if the job had ended already. The batch of a job that was sent is suspect
    from now on. A step that has leased the job finds its lease lost when it commits.
    """
    given_up = leader_jobs.give_up(tx, job_pk, state, reason)  # D1
    if given_up is None:
        return 0
    task_pk, n, sends, batch_id = given_up
    if sends:
        suspects.mark(tx, job_pk)
    for chunk_pk, _ in chunks.sizes_of_job(tx, job_pk):
        chunks.decide(tx, chunk_pk)
    unsent = state is LeaderJobState.EXPIRED and not sends
    counters.add(tx, task_pk, {"aggregate_report_dropped" if unsent else "aggregate_lost": n})
    _forget_empty_batch(tx, task_pk, batch_id)
    collections.touch(tx, task_pk, now)
    return n


def _forget_empty_batch(tx: Tx, task_pk: int, batch_id: bytes) -> None:
    """Forget a suspect leader-selected batch with which nothing is left to do: it takes nothing
    more, no job is to add anything, and there is nothing to collect.
    """
    if (
        batch_id
        and suspects.has(tx, task_pk, batch_id)
        and batches.newest(tx, task_pk, batch_id) is None
        and not outstanding.has_unfinished_job(tx, task_pk, batch_id)
    ):
        outstanding.drop(tx, task_pk, batch_id)
        suspects.drop(tx, task_pk, batch_id_range(batch_id))
