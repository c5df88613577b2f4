"""Rebuilding the replay index: derived data, made at start from the ids that committed (rule D2).

A Leader's ids are those of its report chunks; a Helper's are ``admitted_ids``, which the
committing transaction alone writes. Pending, rejected and deleted jobs contribute nothing.
"""

from __future__ import annotations

from dapd.datastore.engines import Tx

_Q_CHUNKS = """
SELECT chunk_pk, task_pk, ids FROM report_chunks
WHERE chunk_pk > :after ORDER BY chunk_pk LIMIT 500"""
_Q_JOBS = """
SELECT job_pk, task_pk, admitted_ids FROM aggregation_jobs
WHERE job_pk > :after AND admitted_ids IS NOT NULL ORDER BY job_pk LIMIT 500"""


def rebuild(tx: Tx) -> None:
    """Load every admitted id into the index, a few hundred rows at a time."""
    for query in (_Q_CHUNKS, _Q_JOBS):
        after = 0
        while rows := tx.all(query, after=after):
            for _, task_pk, ids in rows:
                tx.replay.load(task_pk, ids)
            after = rows[-1][0]
