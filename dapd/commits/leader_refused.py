"""The transaction that ends a Leader's job which the Helper refused for good: halved or rejected.

Rules D4, D5. The Helper never stored it, so its reports may go into other jobs.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from dapd.datastore import chunks, collections, counters, leader_jobs
from dapd.datastore.chunks import Place, StoredChunk
from dapd.datastore.engines import Tx
from dapd.datastore.leader_jobs import Job
from dapd.datastore.leases import Lease
from dapd.protocol.states import LeaderJob


@dataclass(frozen=True, slots=True)
class Halves:
    """The ids of the jobs to make; ``retry_at`` says when (ms) after so many attempts."""

    ids: tuple[bytes, bytes]
    retry_at: Callable[[int], int]


def halve(tx: Tx, lease: Lease, job: Job, halves: Halves, error: str, now: int) -> bool:
    """Put the reports of a job that was refused for good into two; ``False`` if it held one report,
    which is rejected and counted (D5). Raises ``LeaseLost``.
    """
    held = chunks.of_job(tx, job.job_pk)
    leader_jobs.end(tx, lease, job, LeaderJob.ABANDONED, error)
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
        chunks.hand_over(tx, chunk.chunk_pk, first if in_first else second)
