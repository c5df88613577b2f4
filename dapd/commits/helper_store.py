"""A Helper stores an aggregation job that it will verify later (rule A2).

Run for the async path, and for a sync job whose ``sync_wait`` ended first: then the work under way
holds the lease, and its commit claims the row. Section "Asynchronous Request Handling".
"""

from __future__ import annotations

from dapd.datastore import helper_jobs
from dapd.datastore.engines import Tx
from dapd.datastore.helper_jobs import JobKey, StoredJob
from dapd.protocol.helper import unknown_job


def store(
    tx: Tx, key: JobKey, request: bytes, now: int, *, lease_until: int | None = None
) -> StoredJob:
    """The job, ``received`` now, or in whatever state its identity already is (rule A1).

    ``lease_until`` (ms) where this process works on it already. Raises ``Abort`` if the job was
    deleted meanwhile.
    """
    # D1, A1: the identity is free, or what holds it is the answer.
    job_pk = helper_jobs.insert(tx, key, "received", now, lease_until)
    if job_pk is None:
        return existing(tx, key)
    helper_jobs.store_request(tx, job_pk, request)
    return StoredJob(key.id, "received", key.n, None)


def existing(tx: Tx, key: JobKey) -> StoredJob:
    """The job that stands where ``key`` would. Raises ``Abort`` if it was deleted (rule A6)."""
    job = helper_jobs.by_id(tx, key.task_pk, key.id, key.expired_before)
    if job is None:
        job = helper_jobs.by_identity(tx, key.task_pk, key.request_hash, key.expired_before)
    if job is None or job.state == "deleted":
        raise unknown_job()
    return job
