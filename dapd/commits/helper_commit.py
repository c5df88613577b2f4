"""A Helper commits a verified aggregation job: response and contributions together, once.

Sections "Batch Buckets" and "Helper Initialization". Whether a report is replayed or its batch
collected is decided here, inside the transaction, and what was admitted is written here alone
(rule D2).
"""

from __future__ import annotations

from dapd.commits.helper_store import existing
from dapd.datastore import batches, counters, helper_jobs, marks
from dapd.datastore.engines import Tx
from dapd.datastore.helper_jobs import JobKey, StoredJob
from dapd.reports import HelperVerified, count_outcomes, outcome_name

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


def commit(tx: Tx, key: JobKey, verified: HelperVerified, now: int, *, stored: bool) -> StoredJob:
    """The finished job, or what became of it meanwhile; the second run returns the first's outcome.

    ``stored`` says that its row is there for certain; else it is made here unless it is.
    Raises ``VerifyAgainError``, or ``Abort`` if the job was deleted (A6); either leaves nothing.
    """
    job_pk = _claim(tx, key, now, stored=stored)  # D1
    if job_pk is None:
        return existing(tx, key)
    shut = batches.shut_buckets(tx, key.task_pk, verified.buckets)
    replayed = tx.replay.admit(key.task_pk, verified.candidates(shut))
    if verified.rework_seconds(shut, replayed) > REWORK_SECONDS:
        raise VerifyAgainError(verified.known(shut, replayed))
    finished = verified.finish(shut, replayed)
    if finished.admitted_ids and finished.admitted_min < marks.refused_before(tx, key.task_pk):
        # D6: the mark has risen since; ids below it may have been forgotten already.
        raise VerifyAgainError(verified.known(shut, replayed))
    helper_jobs.store_finish(tx, job_pk, finished)
    batches.add_contributions(tx, key.task_pk, key.id, finished.buckets)
    counters.add(tx, key.task_pk, _counts(finished.outcomes))
    return StoredJob(key.id, "finished", key.n, finished.response)


def _claim(tx: Tx, key: JobKey, now: int, *, stored: bool) -> int | None:
    """This run's right to commit the job: its new row, or the one held under its lease."""
    made = None if stored else helper_jobs.insert(tx, key, "finished", now, None)
    return helper_jobs.claim(tx, key) if made is None else made


def _counts(outcomes: bytes) -> dict[str, int]:
    return {
        f"aggregate_{outcome_name(code) if code else 'finished'}": n
        for code, n in count_outcomes(outcomes).items()
    }
