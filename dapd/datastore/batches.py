"""Batches: what jobs contributed to their buckets, and which intervals or batch ids are closed.

A bucket is 8 big-endian bytes of time or a 32-byte batch id. A batch is a half-open range of
buckets; a batch id is the range from itself to itself followed by a zero byte, so that both batch
modes compare alike (rule C1).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from dapd.datastore.engines import Tx
from dapd.reports import BucketTotal

# Ranges of a task never overlap: the last one that begins early enough is the only one to ask.
_Q_STATE = """
SELECT CASE WHEN hi > :bucket THEN state END FROM collected
WHERE task_pk = :task_pk AND lo <= :bucket ORDER BY lo DESC LIMIT 1"""
_Q_OVERLAP = """
SELECT CASE WHEN hi > :lo THEN state END, collection_pk FROM collected
WHERE task_pk = :task_pk AND lo < :hi ORDER BY lo DESC LIMIT 1"""
_Q_CLOSE = """
INSERT INTO collected (task_pk, lo, hi, state, collection_pk)
VALUES (:task_pk, :lo, :hi, :state, :collection_pk)"""
_Q_SETTLE = "UPDATE collected SET state = 'collected' WHERE collection_pk = :collection_pk"
_Q_REOPEN = "DELETE FROM collected WHERE collection_pk = :collection_pk AND state = 'closed'"
_Q_ADD_SHARE = """
INSERT INTO batch_shares (task_pk, bucket, job_id, n, checksum, time_min, time_max, share)
VALUES (:task_pk, :bucket, :job_id, :n, :checksum, :time_min, :time_max, :share)"""
_Q_SHARES_AFTER = """
SELECT bucket, job_id, n, checksum, time_min, time_max, share FROM batch_shares
WHERE task_pk = :task_pk AND (bucket, job_id) > (:bucket, :job_id) AND bucket < :hi
ORDER BY bucket, job_id LIMIT :size"""
_Q_EXTENT = """
SELECT count(*), COALESCE(max(share_pk), 0) FROM batch_shares
WHERE task_pk = :task_pk AND bucket >= :lo AND bucket < :hi"""
_Q_COUNT = """
SELECT COALESCE(sum(n), 0) FROM batch_shares
WHERE task_pk = :task_pk AND bucket >= :lo AND bucket < :hi"""


@dataclass(frozen=True, slots=True)
class Contribution:
    """What one job added to one bucket; ``share`` is sealed, times are inclusive."""

    bucket: bytes
    job_id: bytes
    n: int
    checksum: bytes
    time_min: int
    time_max: int
    share: bytes


@dataclass(frozen=True, slots=True)
class Closed:
    """The state of a closed range: ``closed`` while its collection runs, then ``collected``."""

    state: str
    collection_pk: int | None


def bucket_state(tx: Tx, task_pk: int, bucket: bytes) -> str | None:
    """``closed``, ``collected``, or ``None`` for a bucket that takes reports."""
    row = tx.one(_Q_STATE, task_pk=task_pk, bucket=bucket)
    return row[0] if row else None


def shut_buckets(tx: Tx, task_pk: int, buckets: Sequence[bytes]) -> list[bytes]:
    """Those of ``buckets`` that take no more reports."""
    return [bucket for bucket in buckets if bucket_state(tx, task_pk, bucket) is not None]


def overlapping(tx: Tx, task_pk: int, lo: bytes, hi: bytes) -> Closed | None:
    """The first closed or collected range that shares a bucket with [lo, hi)."""
    row = tx.one(_Q_OVERLAP, task_pk=task_pk, lo=lo, hi=hi)
    return Closed(*row) if row and row[0] else None


def close(
    tx: Tx, task_pk: int, lo: bytes, hi: bytes, *, state: str, collection_pk: int | None
) -> None:
    """Shut [lo, hi): ``closed`` on a Leader that freezes, ``collected`` on a Helper."""
    tx.execute(_Q_CLOSE, task_pk=task_pk, lo=lo, hi=hi, state=state, collection_pk=collection_pk)


def settle(tx: Tx, collection_pk: int) -> None:
    """The collection ended well, or may have: its range stays shut."""
    tx.execute(_Q_SETTLE, collection_pk=collection_pk)


def reopen(tx: Tx, collection_pk: int) -> None:
    """The collection was refused for good: its range takes reports again (rule C2)."""
    tx.execute(_Q_REOPEN, collection_pk=collection_pk)


def add_contributions(tx: Tx, task_pk: int, job_id: bytes, totals: Sequence[BucketTotal]) -> None:
    """Append what a job adds to its buckets; once, because its commit claims the job first (D1)."""
    for total in totals:
        tx.execute(
            _Q_ADD_SHARE,
            task_pk=task_pk,
            bucket=total.bucket,
            job_id=job_id,
            n=total.count,
            checksum=total.checksum,
            time_min=total.time_min,
            time_max=total.time_max,
            share=total.share,
        )


def contributions_in_pages(
    tx: Tx, task_pk: int, lo: bytes, hi: bytes, size: int = 64
) -> Iterator[list[Contribution]]:
    """The same, by bucket and job, a bounded number of them at a time."""
    bucket, job_id = lo, b""
    while rows := tx.all(
        _Q_SHARES_AFTER, task_pk=task_pk, hi=hi, bucket=bucket, job_id=job_id, size=size
    ):
        yield [Contribution(*row) for row in rows]
        bucket, job_id = rows[-1][:2]


def extent(tx: Tx, task_pk: int, lo: bytes, hi: bytes) -> tuple[int, int]:
    """How many contributions [lo, hi) has, and the newest: unchanged means nothing was added."""
    row = tx.one(_Q_EXTENT, task_pk=task_pk, lo=lo, hi=hi)
    assert row is not None
    return row[0], row[1]


def aggregated(tx: Tx, task_pk: int, lo: bytes, hi: bytes) -> int:
    """How many reports the buckets of [lo, hi) hold."""
    row = tx.one(_Q_COUNT, task_pk=task_pk, lo=lo, hi=hi)
    return int(row[0]) if row else 0
