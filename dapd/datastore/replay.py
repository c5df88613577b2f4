"""Rebuilding the replay index: derived data, made at start from the ids that committed (rule D2).

A Leader's ids are those of its report chunks; a Helper's are ``admitted_ids``, which the
committing transaction alone writes. Pending, rejected and deleted jobs contribute nothing.
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
    """Every admitted id, a few hundred rows at a time: the table, and (row, task_pk, ids) each."""
    for table, query in (("report_chunks", _Q_CHUNKS), ("aggregation_jobs", _Q_JOBS)):
        after = 0
        while rows := tx.all(query, after=after):
            yield table, rows
            after = rows[-1][0]
