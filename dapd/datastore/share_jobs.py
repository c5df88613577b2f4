"""A Helper's aggregate shares, as served to the Leader."""

from __future__ import annotations

from dataclasses import dataclass

from dapd.datastore.sqlite import Row, Tx

_SELECT = """
SELECT id, response FROM aggregate_share_jobs
WHERE task_pk = :task_pk AND created_at >= :expired_ms"""
_Q_BY_IDENTITY = f"{_SELECT} AND request_hash = :request_hash"
_Q_BY_ID = f"{_SELECT} AND id = :id"
_Q_INSERT = """
INSERT INTO aggregate_share_jobs (id, task_pk, request_hash, created_at)
VALUES (:id, :task_pk, :request_hash, :now)
ON CONFLICT DO NOTHING"""
_Q_RESPONSE = """
UPDATE aggregate_share_jobs SET response = :response WHERE task_pk = :task_pk AND id = :id"""
_Q_EXPIRED_IDENTITY = """
DELETE FROM aggregate_share_jobs
WHERE task_pk = :task_pk AND request_hash = :request_hash AND created_at < :expired_ms"""
_Q_DROP = """
DELETE FROM aggregate_share_jobs WHERE share_job_pk IN (SELECT share_job_pk
  FROM aggregate_share_jobs WHERE task_pk = :task_pk AND created_at < :expired_ms LIMIT :most)"""
_Q_DELETE = "DELETE FROM aggregate_share_jobs WHERE task_pk = :task_pk AND id = :id"


@dataclass(frozen=True, slots=True)
class StoredShare:
    """An aggregate share; ``response`` is the encoded ``AggregateShare``."""

    id: bytes
    response: bytes


def by_identity(tx: Tx, task_pk: int, request_hash: bytes, expired_ms: int) -> StoredShare | None:
    """Return the aggregate share that this request made (A1), unless it has expired (rule D6)."""
    return _stored(
        tx.one(_Q_BY_IDENTITY, task_pk=task_pk, request_hash=request_hash, expired_ms=expired_ms)
    )


def by_id(tx: Tx, task_pk: int, share_id: bytes, expired_ms: int) -> StoredShare | None:
    """Return the aggregate share with this resource id, unless it has expired (rule D6)."""
    return _stored(tx.one(_Q_BY_ID, task_pk=task_pk, id=share_id, expired_ms=expired_ms))


def claim(
    tx: Tx, task_pk: int, share_id: bytes, request_hash: bytes, now: int, expired_ms: int
) -> bool:
    """Insert the identity; return whether it was free (rule D1). The caller must then ``answer``.

    A share made before ``expired_ms`` gives its identity up.
    """
    tx.execute(
        _Q_EXPIRED_IDENTITY, task_pk=task_pk, request_hash=request_hash, expired_ms=expired_ms
    )
    return bool(
        tx.execute(_Q_INSERT, id=share_id, task_pk=task_pk, request_hash=request_hash, now=now)
    )


def answer(tx: Tx, task_pk: int, share_id: bytes, response: bytes) -> None:
    """Store the response, so that the share is sealed to the Collector only once (rule A4)."""
    tx.execute(_Q_RESPONSE, task_pk=task_pk, id=share_id, response=response)


def delete(tx: Tx, task_pk: int, share_id: bytes) -> bool:
    """Delete a share and its identity; the batch stays collected (rule A6)."""
    return bool(tx.execute(_Q_DELETE, task_pk=task_pk, id=share_id))


def drop(tx: Tx, task_pk: int, expired_ms: int, most: int) -> int:
    """Delete up to ``most`` shares made before ``expired_ms``; return their number."""
    return tx.execute(_Q_DROP, task_pk=task_pk, expired_ms=expired_ms, most=most)


def _stored(row: Row | None) -> StoredShare | None:
    return None if row is None else StoredShare(*row)
