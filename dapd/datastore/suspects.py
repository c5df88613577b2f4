"""Suspect batches: the Helper may have aggregated reports there that this Leader has given up (D4).

A leader-selected batch is suspect as a whole, a time-interval one by its bucket.
"""

from __future__ import annotations

from dapd.datastore.sqlite import Tx
from dapd.protocol.batches import BucketRange

_Q_MARK = """
INSERT INTO suspect_batches (task_pk, bucket)
SELECT DISTINCT task_pk, bucket FROM report_chunks
WHERE job_pk = :job_pk AND state = 'assigned'
ON CONFLICT DO NOTHING"""
_Q_HAS = "SELECT 1 FROM suspect_batches WHERE task_pk = :task_pk AND bucket = :bucket"
_Q_WITHIN = """
SELECT bucket FROM suspect_batches
WHERE task_pk = :task_pk AND bucket >= :lo AND bucket < :hi ORDER BY bucket"""
_Q_DROP = """
DELETE FROM suspect_batches WHERE task_pk = :task_pk AND bucket >= :lo AND bucket < :hi"""
_Q_DROP_ALL = "DELETE FROM suspect_batches WHERE task_pk = :task_pk"


def mark(tx: Tx, job_pk: int) -> None:
    """Mark the batches of an unfinished job's reports, before its chunks are decided."""
    tx.execute(_Q_MARK, job_pk=job_pk)


def has(tx: Tx, task_pk: int, bucket: bytes) -> bool:
    """Return whether the batch, or bucket, is suspect."""
    return tx.one(_Q_HAS, task_pk=task_pk, bucket=bucket) is not None


def within(tx: Tx, task_pk: int, batch: BucketRange) -> list[bytes]:
    """Return the suspect buckets of a batch, in order."""
    rows = tx.all(_Q_WITHIN, task_pk=task_pk, lo=batch.lo, hi=batch.hi)
    return [row[0] for row in rows]


def drop(tx: Tx, task_pk: int, batch: BucketRange) -> None:
    """Forget what was suspect in a batch that is dropped, or closed for good."""
    tx.execute(_Q_DROP, task_pk=task_pk, lo=batch.lo, hi=batch.hi)


def drop_all(tx: Tx, task_pk: int) -> None:
    """Forget what was suspect of a task that is deleted."""
    tx.execute(_Q_DROP_ALL, task_pk=task_pk)
