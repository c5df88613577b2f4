"""An operator's view of the jobs of both tables: by pages, by name, or by resource id.

Rows contain no request, response or share. ``dapd.advice.waiting`` explains why a job waits.
"""

from __future__ import annotations

from dataclasses import dataclass

from dapd.datastore.sqlite import Row, Tx
from dapd.protocol.states import JobState, Kind, job_state

_AGGREGATION = """
SELECT 'aggregation' AS kind, job_pk AS pk, id, task_pk, role, state, n, created_at, run_at,
  lease_until, attempts, sends, crashes, last_error, location, NULL AS error, NULL AS detail,
  refused_ms, 0 AS given_up
FROM aggregation_jobs"""
_COLLECTION = """
SELECT 'collection' AS kind, collection_pk AS pk, id, task_pk, 'leader', state, n, created_at,
  run_at, lease_until, attempts, sends, crashes, last_error, location, error, detail, refused_ms,
  state IN ('failed', 'deleted') AND leader_share IS NOT NULL AS given_up
FROM collection_jobs"""
_WANTED = """
  AND (:task_pk IS NULL OR task_pk = :task_pk) AND (:state IS NULL OR state = :state)"""
# The plus signs make SQLite use the partial indexes, which contain only unfinished jobs.
_Q_OPEN_AGGREGATION = f"""
{_AGGREGATION} WHERE state IN ('assigned', 'stored', 'polling', 'received')
  AND +job_pk > :after {_WANTED} ORDER BY +job_pk LIMIT :limit"""
_Q_OPEN_WAITING = f"""
{_COLLECTION} WHERE state = 'waiting' AND task_pk >= 0 AND +collection_pk > :after {_WANTED}
ORDER BY +collection_pk LIMIT :limit"""
_Q_OPEN_ASKING = f"""
{_COLLECTION} WHERE state IN ('frozen', 'polling') AND run_at >= 0 AND +collection_pk > :after
  {_WANTED}
ORDER BY +collection_pk LIMIT :limit"""
_Q_ALL_AGGREGATION = f"""
{_AGGREGATION} WHERE job_pk < :after {_WANTED} ORDER BY job_pk DESC LIMIT :limit"""
_Q_ALL_COLLECTION = f"""
{_COLLECTION} WHERE collection_pk < :after {_WANTED} ORDER BY collection_pk DESC LIMIT :limit"""
_Q_AGGREGATION_BY_PK = f"{_AGGREGATION} WHERE job_pk = :pk"
_Q_COLLECTION_BY_PK = f"{_COLLECTION} WHERE collection_pk = :pk"
_Q_GIVEN_UP = """
SELECT collection_pk FROM collected WHERE state = 'given_up' ORDER BY task_pk, collected_pk
LIMIT :limit"""
_Q_AGGREGATION_BY_ID = f"""
{_AGGREGATION} WHERE id = :id AND task_pk IN (SELECT task_pk FROM tasks)"""  # noqa: S608 - constants alone
_Q_COLLECTION_BY_ID = f"""
{_COLLECTION} WHERE id = :id AND task_pk IN (SELECT task_pk FROM tasks)"""  # noqa: S608 - constants alone

_LAST = 2**63 - 1
_KINDS: tuple[Kind, ...] = ("collection", "aggregation")
"""Collections come first: there are few, and a Collector waits for each."""
_OPEN: dict[Kind, tuple[str, ...]] = {
    "aggregation": (_Q_OPEN_AGGREGATION,),
    "collection": (_Q_OPEN_WAITING, _Q_OPEN_ASKING),
}
_ALL: dict[Kind, tuple[str, ...]] = {
    "aggregation": (_Q_ALL_AGGREGATION,),
    "collection": (_Q_ALL_COLLECTION,),
}
_BY_PK: dict[Kind, str] = {"aggregation": _Q_AGGREGATION_BY_PK, "collection": _Q_COLLECTION_BY_PK}


@dataclass(frozen=True, slots=True)
class JobRow:
    """A job of either kind; times are in ms.

    ``n`` is ``None`` for a collection without a batch. ``error`` and ``detail`` are what a failed
    collection answers to the Collector. The peer has refused the job for ``refused_ms``; a
    collection that was ``given_up`` for that keeps its batch for the same query.
    """

    kind: Kind
    pk: int
    id: bytes
    task_pk: int
    role: str
    state: JobState
    n: int | None
    created_at: int
    run_at: int
    lease_until: int | None
    attempts: int
    sends: int
    crashes: int
    last_error: str | None
    location: str | None
    error: str | None
    detail: str | None
    refused_ms: int
    given_up: bool

    @property
    def name(self) -> str:
        """The short name for operators, unique for ever."""
        return name_of(self.kind, self.pk)


def name_of(kind: Kind, pk: int) -> str:
    """Return a job's short name for operators."""
    return f"{kind[0]}{pk}"


@dataclass(frozen=True, slots=True)
class Wanted:
    """A filter of jobs: of one task, in states of one name; with ``ended``, also ended jobs, and
    the newest first.
    """

    task_pk: int | None = None
    state: str | None = None
    ended: bool = False


def page(tx: Tx, wanted: Wanted, after: tuple[Kind, int] | None, limit: int) -> list[JobRow]:
    """Return up to ``limit`` jobs after (kind, key) ``after``, oldest first unless ``ended``."""
    found: list[JobRow] = []
    queries = _ALL if wanted.ended else _OPEN
    kinds = _KINDS if after is None else _KINDS[_KINDS.index(after[0]) :]
    for kind in kinds:
        start = _LAST if wanted.ended else 0
        if after is not None and kind == after[0]:
            start = after[1]
        room = limit - len(found)
        found += _rows(tx, queries[kind], wanted, start, room)
        if len(found) == limit:
            break
    return found


def oldest(tx: Tx, kind: Kind, state: JobState) -> JobRow | None:
    """Return the oldest job in an unfinished state."""
    return next(iter(_rows(tx, _OPEN[kind], Wanted(state=state), 0, 1)), None)


def given_up(tx: Tx, limit: int) -> list[str]:
    """Return the names of collections that were given up, and whose batch is still kept."""
    return [name_of("collection", row[0]) for row in tx.all(_Q_GIVEN_UP, limit=limit)]


def by_pk(tx: Tx, kind: Kind, pk: int) -> JobRow | None:
    """Return the job of this kind and key."""
    row = tx.one(_BY_PK[kind], pk=pk)
    return None if row is None else _job(row)


def by_id(tx: Tx, job_id: bytes) -> list[JobRow]:
    """Return the jobs with this resource id, of any task."""
    rows = [*tx.all(_Q_AGGREGATION_BY_ID, id=job_id), *tx.all(_Q_COLLECTION_BY_ID, id=job_id)]
    return [_job(row) for row in rows]


def _rows(tx: Tx, queries: tuple[str, ...], wanted: Wanted, after: int, limit: int) -> list[JobRow]:
    rows = [
        _job(row)
        for query in queries
        for row in tx.all(
            query, after=after, task_pk=wanted.task_pk, state=wanted.state, limit=limit
        )
    ]
    return sorted(rows, key=lambda row: row.pk, reverse=wanted.ended)[:limit]


def _job(row: Row) -> JobRow:
    kind, pk, job_id, task_pk, role, state, *rest, given_up = row
    rest.append(bool(given_up))
    return JobRow(kind, pk, job_id, task_pk, role, job_state(kind, role, state), *rest)
