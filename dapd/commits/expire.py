"""The transactions that end what has waited for the Helper until its reports expired (rule D6).

What was sent may have been aggregated or collected over there, so it is never tried in another way:
a job's reports are lost, a collection's batch stays collected.
"""

from __future__ import annotations

from dapd.commits.give_up import give_up
from dapd.datastore import batches, collections, counters
from dapd.datastore.engines import Tx
from dapd.protocol.states import LeaderJob


def expire_job(tx: Tx, job_pk: int, now: int) -> int:
    """End an unfinished job whose newest report is below the watermark; as ``give_up``."""
    return give_up(tx, job_pk, LeaderJob.EXPIRED, "its reports expired", now)


def expire_collection(
    tx: Tx, task_pk: int, collection_pk: int, expired_before: int, safe: int
) -> bytes | None:
    """Fail a frozen collection of reports below the watermark, and count it; its id, ``None`` if it
    has ended meanwhile. ``safe`` is now by the safe clock (ms).
    """
    ended = collections.give_up(tx, collection_pk, "batchInvalid", "expired", expired_before)
    if ended is None:
        return None
    collections.keep(tx, collection_pk, safe)
    if ended.sends:
        batches.settle(tx, collection_pk)
    else:
        batches.reopen(tx, collection_pk)
    counters.add(tx, task_pk, {"collection_expired": 1})
    return ended.id
