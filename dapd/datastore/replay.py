"""Rebuild the replay index at start, from the ids that were committed (rule D2).

A Leader's ids are those of its report chunks. A Helper's are the ``admitted_ids`` of its jobs,
which only the committing transaction writes, so unfinished and rejected reports have none.
"""

from __future__ import annotations

from collections.abc import Iterator

from dapd.datastore.sqlite import Row, Tx

_Q_CHUNKS = """
SELECT chunk_pk, task_pk, ids FROM report_chunks
WHERE chunk_pk > :after ORDER BY chunk_pk LIMIT 500"""
_Q_JOBS = """
SELECT job_pk, task_pk, admitted_ids FROM aggregation_jobs
WHERE job_pk > :after AND admitted_ids IS NOT NULL ORDER BY job_pk LIMIT 500"""


def rebuild(tx: Tx) -> None:
    """Load every admitted id into the index."""
    for _, page in id_pages(tx):
        for _, task_pk, ids in page:
            tx.replay.load(task_pk, ids)


def id_pages(tx: Tx) -> Iterator[tuple[str, list[Row]]]:
    """Yield every admitted id, in pages: the table, and its rows as (key, task_pk, ids)."""
    for table, query in (("report_chunks", _Q_CHUNKS), ("aggregation_jobs", _Q_JOBS)):
        after = 0
        while rows := tx.all(query, after=after):
            yield table, rows
            after = rows[-1][0]
