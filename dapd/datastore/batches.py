"""Batches: the jobs' contributions to buckets, and the ranges of buckets that are closed.

A bucket is 8 big-endian bytes of time or a 32-byte batch id. A batch is a half-open range of
buckets. A batch id is the range from itself to itself followed by a zero byte, so that both batch
modes compare alike (rule C1).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from dapd.datastore.expiry import PAGE, Found
from dapd.datastore.sqlite import Row, Tx
from dapd.messages.common import CHECKSUM_SIZE
from dapd.protocol.batches import BucketRange
from dapd.protocol.states import RangeState
from dapd.reports import BucketTotal

# Ranges of a task never overlap, so only the last one that begins early enough can contain it.
_Q_STATE = """
SELECT CASE WHEN hi > :bucket THEN state END FROM collected
WHERE task_pk = :task_pk AND lo <= :bucket ORDER BY lo DESC LIMIT 1"""
_Q_OVERLAP = """
SELECT CASE WHEN hi > :lo THEN state END FROM collected
WHERE task_pk = :task_pk AND lo < :hi ORDER BY lo DESC LIMIT 1"""
_Q_QUARANTINED = """
SELECT lo, hi FROM collected
WHERE task_pk = :task_pk AND state = 'quarantined' AND lo < :hi AND hi > :lo ORDER BY lo"""
_Q_ALL_QUARANTINED = """
SELECT lo, hi FROM collected WHERE task_pk = :task_pk AND state = 'quarantined' ORDER BY lo"""
_Q_QUARANTINED_TASKS = """
SELECT count(DISTINCT task_pk) FROM collected WHERE state = 'quarantined'"""
_Q_RANGES = "SELECT lo, hi FROM collected WHERE task_pk = :task_pk AND lo < :hi ORDER BY lo"
_Q_CLOSE = """
INSERT INTO collected (task_pk, lo, hi, state, collection_pk)
VALUES (:task_pk, :lo, :hi, :state, :collection_pk)"""
_Q_SETTLE = "UPDATE collected SET state = 'collected' WHERE collection_pk = :collection_pk"
_Q_GIVE_UP = """
UPDATE collected SET state = 'given_up' WHERE collection_pk = :collection_pk AND state = 'closed'"""
_Q_HAND_OVER = """
UPDATE collected SET state = 'closed', collection_pk = :new
WHERE collection_pk = :old AND state = 'given_up'"""
_Q_REOPEN = "DELETE FROM collected WHERE collection_pk = :collection_pk AND state = 'closed'"
_Q_RELEASE = """
DELETE FROM collected WHERE task_pk = :task_pk AND lo = :lo AND state = 'quarantined'"""
_Q_BUCKETS = "SELECT DISTINCT bucket FROM batch_shares WHERE task_pk = :task_pk"
_Q_TALLY = "SELECT n, checksum FROM batch_shares WHERE task_pk = :task_pk AND bucket = :bucket"
_Q_ADD_SHARE = """
INSERT INTO batch_shares (task_pk, bucket, job_id, n, checksum, time_min, time_max, share)
VALUES (:task_pk, :bucket, :job_id, :n, :checksum, :time_min, :time_max, :share)"""
_Q_SHARES_AFTER = """
SELECT bucket, job_id, n, checksum, time_min, time_max, share, share_pk FROM batch_shares
WHERE task_pk = :task_pk AND (bucket, job_id) > (:bucket, :job_id) AND bucket < :hi
ORDER BY bucket, job_id LIMIT :size"""
_Q_DROP_SHARE = "DELETE FROM batch_shares WHERE share_pk = :share_pk"
# Without "NOT INDEXED" this would read all contributions in the order of their buckets.
_Q_CROWDED = """
SELECT task_pk, bucket FROM (
  SELECT DISTINCT task_pk, bucket FROM batch_shares NOT INDEXED WHERE share_pk > :since) AS added
WHERE (SELECT count(*) FROM (SELECT 1 FROM batch_shares AS s
  WHERE s.task_pk = added.task_pk AND s.bucket = added.bucket LIMIT :many)) >= :many"""
_Q_LAST = "SELECT max(share_pk) FROM batch_shares"
_Q_DROP_BEFORE = """
DELETE FROM batch_shares WHERE share_pk IN (SELECT share_pk FROM batch_shares
  WHERE task_pk = :task_pk AND bucket >= :lo AND bucket < :hi LIMIT :most)
RETURNING bucket, n"""
_Q_EXPIRE = """
UPDATE collected SET newest = max(COALESCE(newest, :newest), :newest),
  state = CASE WHEN state = 'collected' THEN 'collected' ELSE 'expired' END
WHERE task_pk = :task_pk AND lo = :lo"""
_Q_INSERT_EXPIRED = """
INSERT INTO collected (task_pk, lo, hi, state, newest)
VALUES (:task_pk, :lo, :hi, 'expired', :newest)"""
_Q_DROP_EXPIRED = """
DELETE FROM collected WHERE collected_pk IN (SELECT collected_pk FROM collected
  WHERE task_pk = :task_pk AND newest IS NOT NULL AND newest < :before LIMIT :most)"""
_Q_DROP_RANGES = """
DELETE FROM collected WHERE collected_pk IN (SELECT collected_pk FROM collected
  WHERE task_pk = :task_pk AND lo >= :lo AND lo < :hi AND hi <= :hi LIMIT :most)"""
_Q_DROP_ALL_RANGES = """
DELETE FROM collected WHERE collected_pk IN
  (SELECT collected_pk FROM collected WHERE task_pk = :task_pk LIMIT :most)"""
_Q_NEWEST = """
SELECT max(time_max) FROM batch_shares WHERE task_pk = :task_pk AND bucket = :bucket"""
_Q_EXPIRED = """
SELECT share_pk, time_max, bucket FROM batch_shares AS s
WHERE task_pk = :task_pk AND time_max < :expired_before AND (time_max, share_pk) > (:at, :after_pk)
  AND NOT EXISTS (SELECT 1 FROM batch_shares AS newer WHERE newer.task_pk = s.task_pk
    AND newer.bucket = s.bucket AND +newer.time_max >= :expired_before)
ORDER BY time_max, share_pk LIMIT :page"""
_Q_EXTENT = """
SELECT count(*), COALESCE(max(share_pk), 0) FROM batch_shares
WHERE task_pk = :task_pk AND bucket >= :lo AND bucket < :hi"""
_Q_COUNT = """
SELECT COALESCE(sum(n), 0) FROM batch_shares
WHERE task_pk = :task_pk AND bucket >= :lo AND bucket < :hi"""


@dataclass(frozen=True, slots=True)
class Contribution:
    """The contribution of one job, or of several merged ones, to one bucket.

    ``share`` is sealed; times are inclusive; ``share_pk`` is 0 until it is stored.
    """

    bucket: bytes
    job_id: bytes
    n: int
    checksum: bytes
    time_min: int
    time_max: int
    share: bytes
    share_pk: int = 0


def bucket_state(tx: Tx, task_pk: int, bucket: bytes) -> RangeState | None:
    """Return the state of the range that contains the bucket; ``None`` if it takes reports."""
    return _range_state(tx.one(_Q_STATE, task_pk=task_pk, bucket=bucket))


def closed_buckets(tx: Tx, task_pk: int, buckets: Sequence[bytes]) -> list[bytes]:
    """Return those of ``buckets`` that take no more reports."""
    return [bucket for bucket in buckets if bucket_state(tx, task_pk, bucket) is not None]


def overlapping(tx: Tx, task_pk: int, lo: bytes, hi: bytes) -> RangeState | None:
    """Return the state of a range that overlaps [lo, hi), ``QUARANTINED`` first (rule C4); ``None``
    if all of it is open.
    """
    if tx.one(_Q_QUARANTINED, task_pk=task_pk, lo=lo, hi=hi) is not None:
        return RangeState.QUARANTINED
    return _range_state(tx.one(_Q_OVERLAP, task_pk=task_pk, lo=lo, hi=hi))


def close(
    tx: Tx, task_pk: int, lo: bytes, hi: bytes, *, state: RangeState, collection_pk: int | None
) -> None:
    """Close [lo, hi): ``CLOSED`` on a Leader that freezes, ``COLLECTED`` on a Helper."""
    tx.execute(_Q_CLOSE, task_pk=task_pk, lo=lo, hi=hi, state=state, collection_pk=collection_pk)


def mark_collected(tx: Tx, collection_pk: int) -> None:
    """Mark a collection's range collected, since the collection succeeded, or may have."""
    tx.execute(_Q_SETTLE, collection_pk=collection_pk)


def give_up(tx: Tx, collection_pk: int) -> None:
    """Note that a collection was given up, and keeps its range closed for an identical one."""
    tx.execute(_Q_GIVE_UP, collection_pk=collection_pk)


def hand_over(tx: Tx, old: int, new: int) -> None:
    """Hand the range of a collection that was given up over to the one that goes on with it."""
    tx.execute(_Q_HAND_OVER, old=old, new=new)


def reopen(tx: Tx, collection_pk: int) -> None:
    """Reopen a collection's range, since the Helper refused it for good (rule C2)."""
    tx.execute(_Q_REOPEN, collection_pk=collection_pk)


def closed_ranges(tx: Tx, task_pk: int, hi: bytes) -> list[BucketRange]:
    """Return the closed ranges of any state that begin before ``hi``, in order."""
    return [BucketRange(*row) for row in tx.all(_Q_RANGES, task_pk=task_pk, hi=hi)]


def quarantined_ranges(
    tx: Tx, task_pk: int, within: BucketRange | None = None
) -> list[BucketRange]:
    """Return a task's quarantined ranges, in order: all, or those that overlap ``within``."""
    if within is None:
        rows = tx.all(_Q_ALL_QUARANTINED, task_pk=task_pk)
    else:
        rows = tx.all(_Q_QUARANTINED, task_pk=task_pk, lo=within.lo, hi=within.hi)
    return [BucketRange(*row) for row in rows]


def quarantined_tasks(tx: Tx) -> int:
    """Return the number of tasks with a quarantined range."""
    row = tx.one(_Q_QUARANTINED_TASKS)
    assert row is not None
    return int(row[0])


def quarantine(tx: Tx, task_pk: int, ranges: Iterable[BucketRange]) -> None:
    """Close open ranges, because a restore may have forgotten that they were collected."""
    for lo, hi in ranges:
        close(tx, task_pk, lo, hi, state=RangeState.QUARANTINED, collection_pk=None)


def release(tx: Tx, task_pk: int, quarantined: BucketRange) -> None:
    """Reopen a quarantined range."""
    tx.execute(_Q_RELEASE, task_pk=task_pk, lo=quarantined.lo)


def buckets(tx: Tx, task_pk: int) -> list[bytes]:
    """Return every bucket with a contribution."""
    return [row[0] for row in tx.all(_Q_BUCKETS, task_pk=task_pk)]


def tally(tx: Tx, task_pk: int, bucket: bytes) -> tuple[int, bytes]:
    """Return a bucket's number of reports, and the checksum of their ids."""
    n, checksum = 0, 0
    for held, of_held in tx.all(_Q_TALLY, task_pk=task_pk, bucket=bucket):
        n += held
        checksum ^= int.from_bytes(of_held, "big")
    return n, checksum.to_bytes(CHECKSUM_SIZE, "big")


def add_contributions(tx: Tx, task_pk: int, job_id: bytes, totals: Sequence[BucketTotal]) -> None:
    """Add a job's contributions to its buckets; only once, as its commit claims the job (D1)."""
    for total in totals:
        times = total.time_min, total.time_max
        add_contribution(
            tx,
            task_pk,
            Contribution(total.bucket, job_id, total.count, total.checksum, *times, total.share),
        )


def add_contribution(tx: Tx, task_pk: int, part: Contribution) -> None:
    """Insert one contribution."""
    tx.execute(
        _Q_ADD_SHARE,
        task_pk=task_pk,
        bucket=part.bucket,
        job_id=part.job_id,
        n=part.n,
        checksum=part.checksum,
        time_min=part.time_min,
        time_max=part.time_max,
        share=part.share,
    )


def replace_contributions(
    tx: Tx, task_pk: int, share_pks: Sequence[int], merged: Contribution
) -> bool:
    """Replace several contributions by one. Return ``False`` if some of them are gone; the caller
    must then roll the transaction back.
    """
    dropped = sum(tx.execute(_Q_DROP_SHARE, share_pk=share_pk) for share_pk in share_pks)
    if dropped != len(share_pks):
        return False
    add_contribution(tx, task_pk, merged)
    return True


def crowded(tx: Tx, since: int, many: int) -> tuple[list[tuple[int, bytes]], int]:
    """Return the task and the bucket of each open bucket with at least ``many`` contributions of
    which one is newer than ``since``, and what to give as ``since`` the next time.
    """
    found = tx.all(_Q_CROWDED, since=since, many=many)
    last = tx.one(_Q_LAST)
    assert last is not None
    return [each for each in found if bucket_state(tx, *each) is None], max(since, last[0] or 0)


def newest(tx: Tx, task_pk: int, bucket: bytes) -> int | None:
    """Return the time of a bucket's newest report, ``None`` if it has none."""
    row = tx.one(_Q_NEWEST, task_pk=task_pk, bucket=bucket)
    return row[0] if row else None


def expired(
    tx: Tx, task_pk: int, expired_before: int, after: Found
) -> tuple[list[bytes], Found | None]:
    """Return the next buckets of which even the newest report has expired, and where to go on;
    ``None`` if there are no more.
    """
    rows = tx.all(
        _Q_EXPIRED,
        task_pk=task_pk,
        expired_before=expired_before,
        at=after.at,
        after_pk=after.pk,
        page=PAGE,
    )
    last = Found(rows[-1][0], rows[-1][1], 0) if len(rows) == PAGE else None
    return list(dict.fromkeys(bucket for _, _, bucket in rows)), last


def drop_contributions(
    tx: Tx, task_pk: int, batch: BucketRange, most: int
) -> list[tuple[bytes, int]]:
    """Delete up to ``most`` contributions to the buckets of a batch; return the bucket and the
    number of reports of each.
    """
    rows = tx.all(_Q_DROP_BEFORE, task_pk=task_pk, lo=batch.lo, hi=batch.hi, most=most)
    return [(bucket, n) for bucket, n in rows]


def expire(tx: Tx, task_pk: int, batch: BucketRange, newest: int) -> None:
    """Close an expired leader-selected batch to late jobs; ``newest`` is the time of its newest
    report. A collected one stays collected.
    """
    if not tx.execute(_Q_EXPIRE, task_pk=task_pk, lo=batch.lo, newest=newest):
        tx.execute(_Q_INSERT_EXPIRED, task_pk=task_pk, lo=batch.lo, hi=batch.hi, newest=newest)


def drop_expired(tx: Tx, task_pk: int, before: int, most: int) -> int:
    """Delete up to ``most`` ranges of batches whose newest report was below ``before``; return
    their number.
    """
    return tx.execute(_Q_DROP_EXPIRED, task_pk=task_pk, before=before, most=most)


def drop_ranges(tx: Tx, task_pk: int, within: BucketRange | None, most: int) -> int:
    """Delete up to ``most`` ranges in ``within``, or of the whole task; return their number."""
    if within is None:
        return tx.execute(_Q_DROP_ALL_RANGES, task_pk=task_pk, most=most)
    return tx.execute(_Q_DROP_RANGES, task_pk=task_pk, lo=within.lo, hi=within.hi, most=most)


def contributions_in_pages(
    tx: Tx, task_pk: int, lo: bytes, hi: bytes, size: int = 64
) -> Iterator[list[Contribution]]:
    """Yield the contributions to [lo, hi), by bucket and job, in pages of ``size``."""
    bucket, job_id = lo, b""
    while rows := tx.all(
        _Q_SHARES_AFTER, task_pk=task_pk, hi=hi, bucket=bucket, job_id=job_id, size=size
    ):
        yield [Contribution(*row) for row in rows]
        bucket, job_id = rows[-1][:2]


def extent(tx: Tx, task_pk: int, lo: bytes, hi: bytes) -> tuple[int, int]:
    """Return the number of contributions to [lo, hi) and the newest key.

    As long as both are the same, no contribution was added or merged.
    """
    row = tx.one(_Q_EXTENT, task_pk=task_pk, lo=lo, hi=hi)
    assert row is not None
    return row[0], row[1]


def aggregated(tx: Tx, task_pk: int, lo: bytes, hi: bytes) -> int:
    """Return the number of aggregated reports in [lo, hi)."""
    row = tx.one(_Q_COUNT, task_pk=task_pk, lo=lo, hi=hi)
    return int(row[0]) if row else 0


def _range_state(row: Row | None) -> RangeState | None:
    """Return the state in a row of ``_Q_STATE`` or ``_Q_OVERLAP``, if its range is long enough."""
    return None if row is None or row[0] is None else RangeState(row[0])
