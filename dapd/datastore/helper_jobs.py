"""A Helper's aggregation jobs: ``received`` -> ``finished`` -> ``deleted``, or deleted earlier.

A deleted job is a tombstone: it keeps its admitted ids, which prevent replays, but not its identity
and its bodies (rule A6).
"""

from __future__ import annotations

from dataclasses import dataclass

from dapd.datastore import expiry
from dapd.datastore.expiry import Found
from dapd.datastore.sqlite import Row, Tx
from dapd.protocol.states import HelperJobState
from dapd.reports import HelperFinish

_SELECT = """
SELECT id, state, n, response FROM aggregation_jobs LEFT JOIN job_bodies USING (job_pk)
WHERE task_pk = :task_pk AND (newest >= :expired_before OR state = 'received')"""
_Q_BY_IDENTITY = f"{_SELECT} AND request_hash = :request_hash"
_Q_BY_ID = f"{_SELECT} AND id = :id"
_Q_LEASED = """
SELECT id, request_hash, n, bucket, newest FROM aggregation_jobs
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
_Q_EXPIRED_IDENTITY = """
UPDATE aggregation_jobs SET state = 'deleted', request_hash = NULL
WHERE task_pk = :task_pk AND request_hash = :request_hash AND newest < :expired_before
  AND state = 'finished' RETURNING job_pk"""
_Q_CLAIM = """
UPDATE aggregation_jobs SET state = 'finished', lease_token = NULL, lease_until = NULL
WHERE task_pk = :task_pk AND id = :id AND state = 'received' AND lease_token = :lease_token
RETURNING job_pk"""
_Q_FINISH = """
UPDATE aggregation_jobs SET admitted_ids = :admitted_ids, buckets = :buckets
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
_Q_PAST = """
SELECT job_pk, newest, 16 * n + COALESCE((SELECT length(request) FROM job_bodies AS b
  WHERE b.job_pk = j.job_pk), 0)
FROM aggregation_jobs AS j
WHERE task_pk = :task_pk AND newest < :expired_before AND (newest, job_pk) > (:at, :after_pk)
  AND role = 'helper'
ORDER BY newest, job_pk LIMIT :page"""
_Q_DROP = """
DELETE FROM aggregation_jobs
WHERE job_pk = :job_pk AND role = 'helper' AND newest < :expired_before
  AND (state <> 'received' OR lease_token IS NULL OR lease_until <= :now)
RETURNING id, state, n, admitted_ids"""
_Q_ANSWERED = """
SELECT job_pk, buckets FROM aggregation_jobs
WHERE task_pk = :task_pk AND role = 'helper' AND state = 'finished' AND job_pk > :after
ORDER BY job_pk LIMIT :page"""
_Q_FORGET = """
UPDATE aggregation_jobs SET state = 'deleted', request_hash = NULL
WHERE job_pk = :job_pk AND state = 'finished'"""
_Q_DELETE_BODIES = "DELETE FROM job_bodies WHERE job_pk = :job_pk"


@dataclass(frozen=True, slots=True)
class JobKey:
    """The identity of a job and of the work on it.

    ``bucket`` is the batch id, empty in the time-interval mode. The process that works on the job
    leases it with ``lease_token``, even before the job is stored. ``newest`` is the time of the
    newest report, admitted or not, by which the job expires, with its answer and its admitted ids.
    An identical job below ``expired_before`` counts as deleted (rule D6).
    """

    task_pk: int
    id: bytes
    request_hash: bytes
    n: int
    bucket: bytes
    lease_token: bytes
    newest: int
    expired_before: int = 0


@dataclass(frozen=True, slots=True)
class StoredJob:
    """The state of a job's resource; ``response`` is the ``AggregationJobResp`` once finished."""

    id: bytes
    state: HelperJobState
    n: int
    response: bytes | None


def by_identity(tx: Tx, task_pk: int, request_hash: bytes, expired_before: int) -> StoredJob | None:
    """Return the job that this request made (rule A1), unless it has expired (rule D6)."""
    return _stored(
        tx.one(
            _Q_BY_IDENTITY,
            task_pk=task_pk,
            request_hash=request_hash,
            expired_before=expired_before,
        )
    )


def by_id(tx: Tx, task_pk: int, job_id: bytes, expired_before: int) -> StoredJob | None:
    """Return the job or its tombstone, unless it has expired (rule D6)."""
    return _stored(tx.one(_Q_BY_ID, task_pk=task_pk, id=job_id, expired_before=expired_before))


def leased(tx: Tx, task_pk: int, job_pk: int, lease_token: bytes) -> JobKey | None:
    """Return a received job if the lease still holds."""
    row = tx.one(_Q_LEASED, job_pk=job_pk, lease_token=lease_token)
    if row is None:
        return None
    job_id, request_hash, n, bucket, newest = row
    return JobKey(task_pk, job_id, request_hash, n, bucket, lease_token, newest)


def waiting(tx: Tx) -> list[tuple[int, int]]:
    """Return the received jobs of all tasks, each with its number of reports."""
    return [(job_pk, n) for job_pk, n in tx.all(_Q_WAITING)]


def request_of(tx: Tx, job_pk: int) -> bytes | None:
    """Return the stored ``AggregationJobInitReq``; ``None`` once the job is finished or deleted."""
    row = tx.one(_Q_REQUEST_OF, job_pk=job_pk)
    return row[0] if row else None


def insert(
    tx: Tx, key: JobKey, state: HelperJobState, now: int, lease_until: int | None
) -> int | None:
    """Insert a job, leased if ``lease_until`` (ms) is given, and return its key.

    Return ``None`` if a job with this id or identity exists.
    """
    expired = tx.one(
        _Q_EXPIRED_IDENTITY,
        task_pk=key.task_pk,
        request_hash=key.request_hash,
        expired_before=key.expired_before,
    )
    if expired is not None:
        tx.execute(_Q_DELETE_BODIES, job_pk=expired[0])
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
        newest=key.newest,
    )
    return None if row is None else int(row[0])


def claim(tx: Tx, key: JobKey) -> int | None:
    """Claim the received job under this lease by finishing it; ``None`` if there is none (D1)."""
    row = tx.one(_Q_CLAIM, task_pk=key.task_pk, id=key.id, lease_token=key.lease_token)
    return None if row is None else int(row[0])


def store_request(tx: Tx, job_pk: int, request: bytes) -> None:
    """Keep the exact ``AggregationJobInitReq`` until the job is finished."""
    tx.execute(_Q_STORE_REQUEST, job_pk=job_pk, request=request)


def store_finish(tx: Tx, job_pk: int, finished: HelperFinish) -> None:
    """Store what the job admitted, and its response in place of the request (rules A7, D2)."""
    admitted = bool(finished.admitted_ids)
    tx.execute(
        _Q_FINISH,
        job_pk=job_pk,
        admitted_ids=finished.admitted_ids if admitted else None,
        buckets=b"".join(total.bucket for total in finished.buckets),
    )
    tx.execute(_Q_STORE_RESPONSE, job_pk=job_pk, response=finished.response)


def renew_lease(tx: Tx, key: JobKey, lease_until: int) -> None:
    """Renew the lease, if the job is stored."""
    tx.execute(
        _Q_HOLD,
        task_pk=key.task_pk,
        id=key.id,
        lease_token=key.lease_token,
        lease_until=lease_until,
    )


def release_lease(tx: Tx, key: JobKey, now: int) -> None:
    """Release the job, if it is stored; it is due now."""
    tx.execute(_Q_LET_GO, task_pk=key.task_pk, id=key.id, lease_token=key.lease_token, now=now)


def delete(tx: Tx, task_pk: int, job_id: bytes) -> bool:
    """Turn the job into a tombstone (rule A6); return whether there was a job."""
    row = tx.one(_Q_DELETE, task_pk=task_pk, id=job_id)
    if row is None:
        return False
    tx.execute(_Q_DELETE_BODIES, job_pk=row[0])
    return True


@dataclass(frozen=True, slots=True)
class Answered:
    """A finished job with its response; ``buckets`` are those that it added to, joined."""

    job_pk: int
    buckets: bytes


@dataclass(frozen=True, slots=True)
class Dropped:
    """A deleted job: its id, the number of its undecided reports, and its admitted ids."""

    id: bytes
    undecided: int
    admitted_ids: bytes


def past(tx: Tx, task_pk: int, expired_before: int, after: Found) -> list[Found]:
    """Find jobs below the watermark, oldest first."""
    return expiry.page(tx, _Q_PAST, after, task_pk=task_pk, expired_before=expired_before)


def drop(tx: Tx, job_pk: int, expired_before: int, now: int) -> Dropped | None:
    """Delete a job below the watermark; return ``None`` if it is leased at ``now`` (ms)."""
    row = tx.one(_Q_DROP, job_pk=job_pk, expired_before=expired_before, now=now)
    if row is None:
        return None
    tx.execute(_Q_DELETE_BODIES, job_pk=job_pk)
    job_id, state, n, admitted_ids = row
    undecided = n if HelperJobState(state) is HelperJobState.RECEIVED else 0
    return Dropped(job_id, undecided, admitted_ids or b"")


def answered(tx: Tx, task_pk: int, after: int, most: int) -> list[Answered]:
    """Return up to ``most`` finished jobs after ``after`` that the Leader has not deleted (A7)."""
    rows = tx.all(_Q_ANSWERED, task_pk=task_pk, after=after, page=most)
    return [Answered(*row) for row in rows]


def forget(tx: Tx, job_pk: int) -> bool:
    """Turn a finished job into a tombstone, as ``delete`` does; return whether it was finished."""
    if not tx.execute(_Q_FORGET, job_pk=job_pk):
        return False
    tx.execute(_Q_DELETE_BODIES, job_pk=job_pk)
    return True


def _stored(row: Row | None) -> StoredJob | None:
    if row is None:
        return None
    job_id, state, n, response = row
    return StoredJob(job_id, HelperJobState(state), n, response)
