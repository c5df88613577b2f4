"""Counts of a task's uncollected data, in either batch mode.

Data below the watermark doesn't count, because it can't be collected any more (rule D6).
"""

from __future__ import annotations

from dataclasses import dataclass

from dapd.datastore.sqlite import Row, Tx

# There are few undecided chunks beside the decided ones, whose ids are kept. An assigned chunk
# counts until its job has ended, because it does not expire before (rule D6).
_Q_CHUNKS = """
SELECT COALESCE(sum(n), 0), min(time_max) FROM report_chunks
WHERE task_pk = :task_pk AND state IN ('waiting', 'assigned')
  AND (state = 'assigned' OR time_max >= :mark)"""
# Ranges of a task never overlap, so only the last one that begins early enough can contain it.
_Q_BUCKETS = """
SELECT COALESCE(sum(n), 0), min(newest) FROM (
  SELECT sum(share.n) AS n, max(share.time_max) AS newest FROM batch_shares AS share
  WHERE share.task_pk = :task_pk AND (SELECT CASE WHEN hi > share.bucket THEN state END
    FROM collected WHERE collected.task_pk = share.task_pk AND lo <= share.bucket
    ORDER BY lo DESC LIMIT 1) IS NOT 'collected'
  GROUP BY share.bucket)
WHERE newest >= :mark"""
_Q_JOBS = """
SELECT count(*) FROM aggregation_jobs
WHERE task_pk = :task_pk AND state IN ('assigned', 'stored', 'polling', 'received')"""
_Q_COLLECTIONS = """
SELECT count(*) FROM collection_jobs WHERE task_pk = :task_pk
  AND (state IN ('waiting', 'frozen', 'polling') OR state = 'finished' AND served_at IS NULL)"""
_Q_NEWEST_CHUNK = "SELECT max(time_max) FROM report_chunks WHERE task_pk = :task_pk"
_Q_NEWEST_JOB = "SELECT max(newest) FROM aggregation_jobs WHERE task_pk = :task_pk"


@dataclass(frozen=True, slots=True)
class Uncollected:
    """The numbers of a task's uncollected reports and of its unfinished jobs.

    ``waiting`` reports are not aggregated yet; ``aggregated`` ones are in no collected batch.
    ``jobs`` are unfinished aggregation jobs; ``collections`` are unfinished, or their result has
    not been fetched. The first of the reports expires the expiry age after the end of
    ``first_expiring``, in time precisions; ``None`` without reports.
    """

    waiting: int
    aggregated: int
    jobs: int
    collections: int
    first_expiring: int | None

    def __bool__(self) -> bool:
        return bool(self.waiting or self.aggregated or self.jobs or self.collections)


def of_task(tx: Tx, task_pk: int, mark: int) -> Uncollected:
    """Count a task's uncollected data that is not below ``mark``, the watermark.

    A leader-selected batch expires as a whole, by its newest report.
    """
    waiting, first_chunk = _row(tx, _Q_CHUNKS, task_pk=task_pk, mark=mark)
    aggregated, first_bucket = _row(tx, _Q_BUCKETS, task_pk=task_pk, mark=mark)
    (jobs,) = _row(tx, _Q_JOBS, task_pk=task_pk)
    (collections,) = _row(tx, _Q_COLLECTIONS, task_pk=task_pk)
    firsts = [first for first in (first_chunk, first_bucket) if first is not None]
    return Uncollected(waiting, aggregated, jobs, collections, min(firsts, default=None))


def newest(tx: Tx, task_pk: int) -> int:
    """Return the newest time of a report in the task's remaining rows."""
    (chunk,) = _row(tx, _Q_NEWEST_CHUNK, task_pk=task_pk)
    (job,) = _row(tx, _Q_NEWEST_JOB, task_pk=task_pk)
    return max(chunk or 0, job or 0)


def _row(tx: Tx, query: str, **parameters: object) -> Row:
    row = tx.one(query, **parameters)
    assert row is not None
    return row
