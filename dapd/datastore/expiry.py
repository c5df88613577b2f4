"""The garbage collector's searches for expired rows: in the order of expiry, a page at a time.

Rule D6: reads hide what the collector may delete by the same comparison. A report's time is
compared with ``:expired_before``, in time precisions; a row's creation with ``:expired_ms``, by the
safe clock.
"""

from __future__ import annotations

from dataclasses import dataclass

from dapd.datastore.sqlite import Tx
from dapd.protocol.task import Mark

PAGE = 500

# Whether a sweep may find anything: each part is a search in an index, of which the first row
# decides. A part may say yes for a row that must still stay, such as that of an unfinished job.
_Q_HAS_EXPIRED = """
SELECT EXISTS (SELECT 1 FROM report_chunks
    WHERE task_pk = :task_pk AND time_max < :expired_before AND state <> 'assigned')
  OR EXISTS (SELECT 1 FROM aggregation_jobs WHERE task_pk = :task_pk AND newest < :expired_before)
  OR EXISTS (SELECT 1 FROM batch_shares WHERE task_pk = :task_pk AND time_max < :expired_before)
  OR EXISTS (SELECT 1 FROM collected
    WHERE task_pk = :task_pk AND lo < :expired_bucket AND hi <= :expired_bucket)
  OR EXISTS (SELECT 1 FROM collected WHERE task_pk = :task_pk AND newest < :forgotten_before)
  OR EXISTS (SELECT 1 FROM collection_jobs WHERE task_pk = :task_pk AND time_max < :expired_before
    AND leader_share IS NOT NULL)
  OR EXISTS (SELECT 1 FROM collection_jobs WHERE task_pk = :task_pk AND created_at < :expired_ms
    AND state <> 'waiting' AND COALESCE(time_max, -1) < :expired_before)
  OR EXISTS (SELECT 1 FROM aggregate_share_jobs
    WHERE task_pk = :task_pk AND created_at < :expired_ms)"""
# An answer may go once its buckets are all collected (rule A7).
_Q_HAS_ANSWERED = """
SELECT EXISTS (SELECT 1 FROM aggregation_jobs
    WHERE task_pk = :task_pk AND role = 'helper' AND state = 'finished')
  AND EXISTS (SELECT 1 FROM collected WHERE task_pk = :task_pk AND state = 'collected')"""


@dataclass(frozen=True, slots=True)
class Found:
    """An expired row: its key, its position in the order, and its approximate size in bytes."""

    pk: int
    at: int
    size: int


START = Found(0, -1, 0)
"""The position before every row."""


def page(tx: Tx, query: str, after: Found, **parameters: object) -> list[Found]:
    """Return the next rows of a query for (pk, at, size) after (``:at``, ``:after_pk``)."""
    return [
        Found(*row)
        for row in tx.all(query, at=after.at, after_pk=after.pk, page=PAGE, **parameters)
    ]


def has_expired(tx: Tx, task_pk: int, mark: Mark, bucket: bytes, forgotten_before: int) -> bool:
    """Return whether a task may have rows that have expired by ``mark``: closed buckets of time
    below ``bucket``, and ids of expired batches below ``forgotten_before``, too.
    """
    row = tx.one(
        _Q_HAS_EXPIRED,
        task_pk=task_pk,
        expired_before=mark.before,
        expired_ms=mark.ms,
        expired_bucket=bucket,
        forgotten_before=forgotten_before,
    )
    return bool(row and row[0])


def has_answered(tx: Tx, task_pk: int) -> bool:
    """Return whether a Helper may keep an answer that it need not keep any more."""
    row = tx.one(_Q_HAS_ANSWERED, task_pk=task_pk)
    return bool(row and row[0])
