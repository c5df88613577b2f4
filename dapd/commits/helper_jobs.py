"""The transactions of a Helper's aggregation job: store it for later, commit it, delete it.

Sections "Helper Initialization", "Batch Buckets", "Asynchronous Request Handling" and "Aggregation
Job Abandonment and Deletion". ``commit_job`` decides inside the transaction whether a report is
replayed or its batch collected, and only it records what was admitted (rule D2).
"""

from __future__ import annotations

from dapd.datastore import batches, counters, helper_jobs, watermarks
from dapd.datastore.helper_jobs import JobKey, StoredJob
from dapd.datastore.sqlite import Tx
from dapd.protocol.helper import unknown_job
from dapd.protocol.states import HelperJobState
from dapd.reports import HelperVerified, count_outcomes, outcome_name


def store_job(
    tx: Tx, key: JobKey, request: bytes, now: int, *, lease_until: int | None = None
) -> StoredJob:
    """The job, ``received`` now, or in whatever state its identity already is (rule A1).

    ``lease_until`` (ms) where this process works on it already. Raises ``Abort`` if the job was
    deleted meanwhile.
    """
    # D1, A1: the identity is free, or what holds it is the answer.
    job_pk = helper_jobs.insert(tx, key, HelperJobState.RECEIVED, now, lease_until)
    if job_pk is None:
        return existing_job(tx, key)
    helper_jobs.store_request(tx, job_pk, request)
    return StoredJob(key.id, HelperJobState.RECEIVED, key.n, None)


def existing_job(tx: Tx, key: JobKey) -> StoredJob:
    """The job that stands where ``key`` would. Raises ``Abort`` if it was deleted (rule A6)."""
    job = helper_jobs.by_id(tx, key.task_pk, key.id, key.expired_before)
    if job is None:
        job = helper_jobs.by_identity(tx, key.task_pk, key.request_hash, key.expired_before)
    if job is None or job.state is HelperJobState.DELETED:
        raise unknown_job()
    return job


REWORK_SECONDS = 0.005
"""The longest that the write lock may be held to correct what verification summed (rule E3)."""


class VerifyAgainError(Exception):
    """Not a fault: the way out of a transaction that must leave no trace, the index included.

    The job is to be verified again outside, by the rules of then and with the column ``known``
    (rules D6, E3).
    """

    def __init__(self, known: bytes) -> None:
        super().__init__("the transaction disagrees with the verification")
        self.known = known


def commit_job(
    tx: Tx, key: JobKey, verified: HelperVerified, now: int, *, stored: bool
) -> StoredJob:
    """The finished job, or what became of it meanwhile; the second run returns the first's outcome.

    ``stored`` says that its row is there for certain; else it is made here unless it is.
    Raises ``VerifyAgainError``, or ``Abort`` if the job was deleted (A6); either leaves nothing.
    """
    job_pk = _claim(tx, key, now, stored=stored)  # D1
    if job_pk is None:
        return existing_job(tx, key)
    shut = batches.shut_buckets(tx, key.task_pk, verified.buckets)
    replayed = tx.replay.admit(key.task_pk, verified.candidates(shut))
    if verified.rework_seconds(shut, replayed) > REWORK_SECONDS:
        raise VerifyAgainError(verified.known(shut, replayed))
    finished = verified.finish(shut, replayed)
    if finished.admitted_ids and finished.admitted_min < watermarks.refused_before(tx, key.task_pk):
        # D6: the mark has risen since; ids below it may have been forgotten already.
        raise VerifyAgainError(verified.known(shut, replayed))
    helper_jobs.store_finish(tx, job_pk, finished)
    batches.add_contributions(tx, key.task_pk, key.id, finished.buckets)
    counters.add(tx, key.task_pk, _counts(finished.outcomes))
    return StoredJob(key.id, HelperJobState.FINISHED, key.n, finished.response)


def _claim(tx: Tx, key: JobKey, now: int, *, stored: bool) -> int | None:
    """This run's right to commit the job: its new row, or the one held under its lease."""
    made = None if stored else helper_jobs.insert(tx, key, HelperJobState.FINISHED, now, None)
    return helper_jobs.claim(tx, key) if made is None else made


def _counts(outcomes: bytes) -> dict[str, int]:
    return {
        f"aggregate_{outcome_name(code) if code else 'finished'}": n
        for code, n in count_outcomes(outcomes).items()
    }


def delete_aggregation_job(tx: Tx, task_pk: int, job_id: bytes) -> bool:
    """Leave a tombstone; whether there was a job.

    An unfinished one admits nothing: a commit under way finds nothing to claim any more.
    """
    return helper_jobs.delete(tx, task_pk, job_id)
