"""The transactions of a Helper's aggregation job: store for later, commit, delete.

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
    """Store the request as a ``received`` job, or return the job that an identical one made (A1).

    ``lease_until`` (ms) is given if this process already works on it. Raises ``Abort`` if the job
    was deleted meanwhile.
    """
    # D1, A1: insert, unless this id or an identical request is stored already.
    job_pk = helper_jobs.insert(tx, key, HelperJobState.RECEIVED, now, lease_until)
    if job_pk is None:
        return existing_job(tx, key)
    helper_jobs.store_request(tx, job_pk, request)
    return StoredJob(key.id, HelperJobState.RECEIVED, key.n, None)


def existing_job(tx: Tx, key: JobKey) -> StoredJob:
    """Return the job with ``key``'s id or identity. Raises ``Abort`` if it was deleted (A6)."""
    job = helper_jobs.by_id(tx, key.task_pk, key.id, key.expired_before)
    if job is None:
        job = helper_jobs.by_identity(tx, key.task_pk, key.request_hash, key.expired_before)
    if job is None or job.state is HelperJobState.DELETED:
        raise unknown_job()
    return job


REWORK_SECONDS = 0.005
"""The longest time for which ``commit_job`` corrects sums while it holds the write lock (E3)."""


class VerifyAgainError(Exception):
    """Not an error: rolls back the transaction, the replay index included.

    The caller must verify the job again, by the rules of that time and with the column ``known``
    (rules D6, E3).
    """

    def __init__(self, known: bytes) -> None:
        super().__init__("the transaction disagrees with the verification")
        self.known = known


def commit_job(
    tx: Tx, key: JobKey, verified: HelperVerified, now: int, *, stored: bool
) -> StoredJob:
    """Store a verified job's response, contributions and admitted ids, and return the job.

    A second run returns the first one's outcome. ``stored`` says that the job's row exists; else
    this inserts it unless it exists. Raises ``VerifyAgainError``, or ``Abort`` if the job was
    deleted (A6); either stores nothing.
    """
    job_pk = _claim(tx, key, now, stored=stored)  # D1
    if job_pk is None:
        return existing_job(tx, key)
    shut = batches.closed_buckets(tx, key.task_pk, verified.buckets)
    replayed = tx.replay.admit(key.task_pk, verified.candidates(shut))
    if verified.rework_seconds(shut, replayed) > REWORK_SECONDS:
        raise VerifyAgainError(verified.known(shut, replayed))
    finished = verified.finish(shut, replayed)
    if finished.admitted_ids and finished.admitted_min < watermarks.refused_before(tx, key.task_pk):
        # D6: the watermark has risen since; ids below it may be forgotten already.
        raise VerifyAgainError(verified.known(shut, replayed))
    helper_jobs.store_finish(tx, job_pk, finished)
    batches.add_contributions(tx, key.task_pk, key.id, finished.buckets)
    counters.add(tx, key.task_pk, _counts(finished.outcomes))
    return StoredJob(key.id, HelperJobState.FINISHED, key.n, finished.response)


def _claim(tx: Tx, key: JobKey, now: int, *, stored: bool) -> int | None:
    """Claim the job: insert its row, or take the one under our lease. ``None`` if neither works."""
    made = None if stored else helper_jobs.insert(tx, key, HelperJobState.FINISHED, now, None)
    return helper_jobs.claim(tx, key) if made is None else made


def _counts(outcomes: bytes) -> dict[str, int]:
    return {
        f"aggregate_{outcome_name(code) if code else 'finished'}": n
        for code, n in count_outcomes(outcomes).items()
    }


def delete_aggregation_job(tx: Tx, task_pk: int, job_id: bytes) -> bool:
    """Turn the job into a tombstone; return whether there was a job.

    An unfinished job admits nothing, because a running ``commit_job`` finds nothing to claim.
    """
    return helper_jobs.delete(tx, task_pk, job_id)
