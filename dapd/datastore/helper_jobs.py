"""A Helper's aggregation jobs: ``received`` -> ``finished`` -> ``deleted``, or deleted before.

A deleted job is a tombstone: it keeps the admitted ids, the replay record, and has no identity and
no bodies any more (rule A6).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from dapd.datastore.engines import Row, Tx
from dapd.reports import HelperFinish

State = Literal["received", "finished", "deleted"]

_SELECT = """
SELECT id, state, n, response FROM aggregation_jobs LEFT JOIN job_bodies USING (job_pk)
WHERE task_pk = :task_pk"""
_Q_BY_IDENTITY = f"{_SELECT} AND request_hash = :request_hash"
_Q_BY_ID = f"{_SELECT} AND id = :id"
_Q_REQUEST = """
SELECT id, request_hash, n, bucket, newest, request
FROM aggregation_jobs JOIN job_bodies USING (job_pk)
WHERE job_pk = :job_pk AND state = 'received' AND lease_token = :lease_token"""
_Q_WAITING = """
SELECT job_pk, n FROM aggregation_jobs
WHERE state IN ('assigned', 'received') AND state = 'received'"""
_Q_REQUEST_OF = "SELECT request FROM job_bodies WHERE job_pk = :job_pk"
_Q_INSERT = """
INSERT INTO aggregation_jobs (id, task_pk, role, state, n, bucket, run_at, lease_token,
  lease_until, request_hash, newest, created_at)
VALUES (:id, :task_pk, 'helper', :state, :n, :bucket, :now, :lease_token, :lease_until,
  :request_hash, :newest, :now)
ON CONFLICT DO NOTHING RETURNING job_pk"""
_Q_CLAIM = """
UPDATE aggregation_jobs SET state = 'finished', lease_token = NULL, lease_until = NULL
WHERE task_pk = :task_pk AND id = :id AND state = 'received' AND lease_token = :lease_token
RETURNING job_pk"""
_Q_FINISH = """
UPDATE aggregation_jobs SET admitted_ids = :admitted_ids, newest = COALESCE(:newest, newest),
  buckets = :buckets
WHERE job_pk = :job_pk"""
_Q_STORE_REQUEST = "INSERT INTO job_bodies (job_pk, request) VALUES (:job_pk, :request)"
_Q_STORE_RESPONSE = """
INSERT INTO job_bodies (job_pk, response) VALUES (:job_pk, :response)
ON CONFLICT (job_pk) DO UPDATE SET request = NULL, response = excluded.response"""
_Q_HOLD = """
UPDATE aggregation_jobs SET lease_until = :lease_until
WHERE task_pk = :task_pk AND id = :id AND lease_token = :lease_token"""
_Q_LET_GO = """
UPDATE aggregation_jobs SET lease_token = NULL, lease_until = NULL, run_at = :now
WHERE task_pk = :task_pk AND id = :id AND lease_token = :lease_token"""
_Q_DELETE = """
UPDATE aggregation_jobs SET state = 'deleted', request_hash = NULL, lease_token = NULL,
  lease_until = NULL
WHERE task_pk = :task_pk AND id = :id AND state <> 'deleted' RETURNING job_pk"""
_Q_DELETE_BODIES = "DELETE FROM job_bodies WHERE job_pk = :job_pk"


@dataclass(frozen=True, slots=True)
class JobKey:
    """What names a job and the work on it; ``bucket`` is the batch id, empty in time-interval.

    Whoever works on the job holds it under ``lease_token``, also before the job is stored.
    ``made_at`` is a time of the task by the safe clock: when the job expires if it admits nothing.
    """

    task_pk: int
    id: bytes
    request_hash: bytes
    n: int
    bucket: bytes
    lease_token: bytes
    made_at: int


@dataclass(frozen=True, slots=True)
class StoredJob:
    """A job as its resource shows it; ``response`` is the ``AggregationJobResp`` once finished."""

    id: bytes
    state: State
    n: int
    response: bytes | None


def by_identity(tx: Tx, task_pk: int, request_hash: bytes) -> StoredJob | None:
    """The job that this request made (rule A1)."""
    return _stored(tx.one(_Q_BY_IDENTITY, task_pk=task_pk, request_hash=request_hash))


def by_id(tx: Tx, task_pk: int, job_id: bytes) -> StoredJob | None:
    """The job, also if only its tombstone is left."""
    return _stored(tx.one(_Q_BY_ID, task_pk=task_pk, id=job_id))


def leased_request(
    tx: Tx, task_pk: int, job_pk: int, lease_token: bytes
) -> tuple[JobKey, bytes] | None:
    """A received job and its request, while the lease holds."""
    row = tx.one(_Q_REQUEST, job_pk=job_pk, lease_token=lease_token)
    if row is None:
        return None
    job_id, request_hash, n, bucket, made_at, request = row
    return JobKey(task_pk, job_id, request_hash, n, bucket, lease_token, made_at), request


def waiting(tx: Tx) -> list[tuple[int, int]]:
    """The received jobs of all tasks, each with its number of reports."""
    return [(job_pk, n) for job_pk, n in tx.all(_Q_WAITING)]


def request_of(tx: Tx, job_pk: int) -> bytes | None:
    """The stored ``AggregationJobInitReq``; ``None`` once the job is finished or deleted."""
    row = tx.one(_Q_REQUEST_OF, job_pk=job_pk)
    return row[0] if row else None


def insert(tx: Tx, key: JobKey, state: State, now: int, lease_until: int | None) -> int | None:
    """A new row, leased if ``lease_until`` (ms) is given; ``None`` if identity or id is taken."""
    row = tx.one(
        _Q_INSERT,
        id=key.id,
        task_pk=key.task_pk,
        state=state,
        n=key.n,
        bucket=key.bucket,
        now=now,
        lease_token=None if lease_until is None else key.lease_token,
        lease_until=lease_until,
        request_hash=key.request_hash,
        newest=key.made_at,
    )
    return None if row is None else int(row[0])


def claim(tx: Tx, key: JobKey) -> int | None:
    """Finish the received job that is held under this lease; ``None`` if there is none (D1)."""
    row = tx.one(_Q_CLAIM, task_pk=key.task_pk, id=key.id, lease_token=key.lease_token)
    return None if row is None else int(row[0])


def store_request(tx: Tx, job_pk: int, request: bytes) -> None:
    """Keep the exact ``AggregationJobInitReq`` until the job is finished."""
    tx.execute(_Q_STORE_REQUEST, job_pk=job_pk, request=request)


def store_finish(tx: Tx, job_pk: int, finished: HelperFinish) -> None:
    """What the job admitted, and its response in the request's place (rules A7, D2)."""
    admitted = bool(finished.admitted_ids)
    tx.execute(
        _Q_FINISH,
        job_pk=job_pk,
        admitted_ids=finished.admitted_ids if admitted else None,
        newest=finished.admitted_max if admitted else None,
        buckets=b"".join(total.bucket for total in finished.buckets),
    )
    tx.execute(_Q_STORE_RESPONSE, job_pk=job_pk, response=finished.response)


def hold(tx: Tx, key: JobKey, lease_until: int) -> None:
    """Renew the lease, if the job is stored."""
    tx.execute(
        _Q_HOLD,
        task_pk=key.task_pk,
        id=key.id,
        lease_token=key.lease_token,
        lease_until=lease_until,
    )


def let_go(tx: Tx, key: JobKey, now: int) -> None:
    """Give the job, if it is stored, to whoever comes next."""
    tx.execute(_Q_LET_GO, task_pk=key.task_pk, id=key.id, lease_token=key.lease_token, now=now)


def delete(tx: Tx, task_pk: int, job_id: bytes) -> bool:
    """Leave a tombstone of the job; whether there was one to delete (rule A6)."""
    row = tx.one(_Q_DELETE, task_pk=task_pk, id=job_id)
    if row is None:
        return False
    tx.execute(_Q_DELETE_BODIES, job_pk=row[0])
    return True


def _stored(row: Row | None) -> StoredJob | None:
    return None if row is None else StoredJob(*row)
