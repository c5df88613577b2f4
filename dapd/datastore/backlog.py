"""The backlog: counts of unfinished jobs and waiting reports, for status, metrics and the page.

Every query reads only unfinished rows, by a partial index, so finished ones cost nothing.
"""

from __future__ import annotations

from dataclasses import dataclass

from dapd.datastore.sqlite import Row, Tx
from dapd.protocol.states import JobState, Kind, job_state

_Q_JOBS = """
SELECT task_pk, role, state, count(*), sum(n), min(run_at), min(created_at), max(attempts)
FROM aggregation_jobs
WHERE state IN ('assigned', 'stored', 'polling', 'received') GROUP BY task_pk, role, state"""
_Q_COLLECTIONS = """
SELECT task_pk, 'leader', state, count(*), 0, min(run_at), min(created_at), max(attempts)
FROM collection_jobs
WHERE state = 'waiting' GROUP BY task_pk
UNION ALL
SELECT task_pk, 'leader', state, count(*), sum(n), min(run_at), min(created_at), max(attempts)
FROM collection_jobs
WHERE state IN ('frozen', 'polling') AND run_at >= 0 GROUP BY task_pk, state"""
_Q_WAITING = """
SELECT task_pk, count(*), sum(n), min(run_at) FROM report_chunks
WHERE state = 'waiting' GROUP BY task_pk"""


@dataclass(frozen=True, slots=True)
class Unfinished:
    """The jobs of one task in one state; ``run_at`` and ``created_at`` (ms) are the earliest."""

    task_pk: int
    role: str
    state: JobState
    jobs: int
    n: int
    run_at: int
    created_at: int
    attempts: int


@dataclass(frozen=True, slots=True)
class Waiting:
    """The reports of one task that wait for a job; the first may be assigned from ``run_at``."""

    task_pk: int
    chunks: int
    n: int
    run_at: int


@dataclass(frozen=True, slots=True)
class WholeBacklog:
    """The backlog of all tasks."""

    aggregation_jobs: list[Unfinished]
    collection_jobs: list[Unfinished]
    waiting: list[Waiting]


def whole_backlog(tx: Tx) -> WholeBacklog:
    """Count the backlog of all tasks."""
    return WholeBacklog(
        [_unfinished("aggregation", row) for row in tx.all(_Q_JOBS)],
        [_unfinished("collection", row) for row in tx.all(_Q_COLLECTIONS)],
        [Waiting(*row) for row in tx.all(_Q_WAITING)],
    )


def _unfinished(kind: Kind, row: Row) -> Unfinished:
    task_pk, role, state, *rest = row
    return Unfinished(task_pk, role, job_state(kind, role, state), *rest)
