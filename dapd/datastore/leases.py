"""Leases, which reserve aggregation and collection jobs for the steps that work on them (E2).

A lease is a random token with an expiry time, in the job's row. Leasing counts an attempt. If a
process dies without releasing a lease, that counts as a crash of the job. A ``run_at`` or a lease
further in the future than the longest legal wait counts as due: the clock was set back.
"""

from __future__ import annotations

import json
import secrets
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass

from dapd.datastore.sqlite import Tx
from dapd.protocol.retry import LONGEST_RETRY_AFTER
from dapd.protocol.states import JobState, Kind, job_state

LEASE_MS = 60_000
LONGEST_WAIT_MS = int(1000 * LONGEST_RETRY_AFTER)
LONGEST_CRASH_WAIT_MS = 64_000
_TABLES: dict[Kind, dict[str, str]] = {
    "aggregation": {
        "table": "aggregation_jobs",
        "pk": "job_pk",
        "role": "role",
        "computing": "state IN ('assigned', 'received')",
        "exchanging": "state IN ('stored', 'polling')",
    },
    "collection": {
        "table": "collection_jobs",
        "pk": "collection_pk",
        "role": "'leader'",
        "computing": "state IN ('waiting')",
        "exchanging": "state IN ('frozen', 'polling')",
    },
}

# One query per index, so that SQLite finds the oldest due jobs without sorting all due ones.
_SELECT = """
SELECT {pk}, id, task_pk, {role}, state, run_at, attempts, sends, crashes FROM """
_DUE = """run_at <= :now
  AND (lease_token IS NULL OR lease_until <= :now OR lease_until > :now + :longest)
  AND task_pk NOT IN (SELECT value FROM json_each(:unreadable))
  AND (SELECT tasks.state FROM tasks WHERE tasks.task_pk = job.task_pk) IN ('active', 'draining')"""
_OLDEST = " ORDER BY run_at, {pk} LIMIT "
_Q_COMPUTING = f"{_SELECT} {{table}} AS job WHERE {{computing}} AND {_DUE} {_OLDEST} :limit"
# This steps from peer to peer, so its cost doesn't grow with the jobs of those that are blocked.
_Q_EXCHANGING = f"""
WITH RECURSIVE here (at) AS (
  SELECT min(peer) FROM {{table}} WHERE {{exchanging}}
  UNION ALL
  SELECT (SELECT min(peer) FROM {{table}} WHERE {{exchanging}} AND peer > here.at)
  FROM here WHERE at IS NOT NULL)
{_SELECT} here CROSS JOIN {{table}}
WHERE at NOT IN (SELECT value FROM json_each(:blocked)) AND {{pk}} IN (
  SELECT {{pk}} FROM {{table}} AS job WHERE {{exchanging}} AND peer = at AND {_DUE}
  {_OLDEST} :per_peer)
{_OLDEST} :limit"""  # noqa: S608 - constants alone
_Q_BEYOND = """
UPDATE {table} SET run_at = :now WHERE run_at > :now + :longest AND {which}"""
_Q_NEXT = """
SELECT min(run_at) FROM {table} WHERE {which} AND lease_token IS NULL AND run_at > :now"""
_Q_LEASE = """
UPDATE {table} SET lease_token = :token, lease_until = :until, attempts = attempts + 1
WHERE {pk} = :pk"""
_Q_RENEW = "UPDATE {table} SET lease_until = :until WHERE {pk} = :pk AND lease_token = :token"
_Q_RELEASE = """
UPDATE {table} SET lease_token = NULL, lease_until = NULL, run_at = :run_at, last_error = :error,
  attempts = CASE WHEN :reset THEN 0 ELSE attempts END, crashes = 0
WHERE {pk} = :pk AND lease_token = :token"""
_Q_HURRY = """
UPDATE {table} SET run_at = :now
WHERE {pk} = :pk AND ({computing} OR {exchanging})
  AND (lease_token IS NULL OR lease_until <= :now)"""
_Q_HELD = """
SELECT count(*), COALESCE(sum({computing}), 0) FROM {table}
WHERE lease_token IS NOT NULL AND lease_until > :now"""
_Q_INTERRUPT = """
UPDATE {table} SET refused_at = NULL WHERE {exchanging} AND refused_at IS NOT NULL"""
_Q_CLEAR = """
UPDATE {table} SET lease_token = NULL, lease_until = NULL, crashes = crashes + 1,
  run_at = CASE WHEN crashes = 0 THEN run_at
    ELSE :now + 1000 * (1 << (CASE WHEN crashes < 6 THEN crashes ELSE 6 END)) END
WHERE lease_token IS NOT NULL"""


@dataclass(frozen=True, slots=True)
class Due:
    """A job that a step could work on now; ``id`` is its resource's."""

    kind: Kind
    pk: int
    id: bytes
    task_pk: int
    state: JobState
    run_at: int
    attempts: int
    sends: int
    crashes: int


@dataclass(frozen=True, slots=True)
class Lease:
    """A job leased to this process; its ``attempts`` and ``sends`` don't count this lease."""

    due: Due
    token: bytes

    @property
    def pk(self) -> int:
        return self.due.pk


@dataclass(frozen=True, slots=True)
class Scope:
    """Which due jobs ``lease_due`` considers: no ones of tasks that are not served or that this
    process finds ``unreadable``, no exchanges with ``blocked`` peers, and up to ``per_peer``
    exchanges with each other peer, so that none crowds out another's jobs (rule E1).
    """

    unreadable: Collection[int] = ()
    blocked: Collection[str] = ()
    per_peer: int = 64


_EVERYTHING = Scope()


def lease_due(
    tx: Tx,
    now: int,
    choose: Callable[[Sequence[Due]], list[Due]],
    scope: Scope = _EVERYTHING,
    limit: int = 64,
    longest_wait: int = LONGEST_WAIT_MS,
) -> tuple[list[Lease], int | None]:
    """Lease the due jobs that ``choose`` picks. Return also when the next job is due, if known.

    No job waits longer than ``longest_wait``, in ms (E2).
    """
    for kind in _TABLES:
        for which in ("computing", "exchanging"):
            tx.execute(_sql(_Q_BEYOND, kind, which), now=now, longest=longest_wait)
    due = [job for kind in _TABLES for job in _due(tx, kind, now, scope, limit)]
    leases = [Lease(job, secrets.token_bytes(16)) for job in choose(sorted(due, key=_age))]
    for lease in leases:
        tx.execute(
            _sql(_Q_LEASE, lease.due.kind), token=lease.token, until=now + LEASE_MS, pk=lease.pk
        )
    return leases, min(_upcoming(tx, now), default=None)


def _due(tx: Tx, kind: Kind, now: int, scope: Scope, limit: int) -> Iterator[Due]:
    parameters = {
        "now": now,
        "longest": LONGEST_WAIT_MS,
        "unreadable": json.dumps(list(scope.unreadable)),
        "blocked": json.dumps(list(scope.blocked)),
        "per_peer": scope.per_peer,
        "limit": limit,
    }
    for query in (_Q_COMPUTING, _Q_EXCHANGING):
        for row in tx.all(_sql(query, kind), **parameters):
            pk, job_id, task_pk, role, state, *rest = row
            yield Due(kind, pk, job_id, task_pk, job_state(kind, role, state), *rest)


def _upcoming(tx: Tx, now: int) -> Iterator[int]:
    for kind in _TABLES:
        for which in ("computing", "exchanging"):
            row = tx.one(_sql(_Q_NEXT, kind, which), now=now)
            if row and row[0] is not None:
                yield row[0]


def renew(tx: Tx, leases: Sequence[Lease], now: int) -> None:
    """Extend leases; a lost lease stays lost."""
    for lease in leases:
        tx.execute(
            _sql(_Q_RENEW, lease.due.kind), until=now + LEASE_MS, pk=lease.pk, token=lease.token
        )


def release(
    tx: Tx, lease: Lease, run_at: int, *, error: str | None = None, reset_attempts: bool = False
) -> bool:
    """Return the job to the queue, due at ``run_at``; return whether the lease still held.

    ``reset_attempts`` is for when the peer answered: the next failure then backs off from the
    start.
    """
    return bool(
        tx.execute(
            _sql(_Q_RELEASE, lease.due.kind),
            run_at=run_at,
            error=error,
            reset=reset_attempts,
            pk=lease.pk,
            token=lease.token,
        )
    )


def make_due(tx: Tx, kind: Kind, pk: int, now: int) -> bool:
    """Make an unfinished job due now (ms), unless it is leased. Return whether that happened."""
    return bool(tx.execute(_sql(_Q_HURRY, kind), pk=pk, now=now))


def held(tx: Tx, now: int) -> tuple[int, int]:
    """Return the number of leased jobs, and how many of them are computing."""
    rows = [tx.one(_sql(_Q_HELD, kind), now=now) or (0, 0) for kind in _TABLES]
    return sum(row[0] for row in rows), sum(row[1] for row in rows)


def clear_all(tx: Tx, now: int) -> None:
    """Clear the leases of the previous process, at start.

    A job leased when that process died may have killed it. From its second crash on, a job backs
    off, and the dispatcher runs it alone. The time until now doesn't count as refused (rule D4).
    """
    for kind in _TABLES:
        tx.execute(_sql(_Q_CLEAR, kind), now=now)
        tx.execute(_sql(_Q_INTERRUPT, kind))


def _age(due: Due) -> tuple[int, int]:
    return due.run_at, due.pk


def _sql(template: str, kind: Kind, which: str = "computing") -> str:
    names = _TABLES[kind]
    return template.format(**names, which=names[which])
