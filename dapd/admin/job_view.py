"""Jobs as responses show them: the row, and in words why it doesn't run now."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import msgspec

from dapd.admin.operation import Moment, rfc3339
from dapd.admin.peers import PeerView, peer_view
from dapd.advice.waiting import JobFacts, PeerFacts, Reason, Surroundings, Why, why_waiting
from dapd.datastore import Tx, leases
from dapd.datastore import tasks as task_table
from dapd.datastore.jobs import JobRow
from dapd.datastore.tasks import SealedTask, UnreadableTask
from dapd.messages.common import b64url_encode
from dapd.protocol.task import TaskState
from dapd.runtime.context import Context


class Waits(msgspec.Struct, frozen=True):
    """Why the job doesn't run now: ``reason`` for programs, ``text`` for people. ``remedy`` is
    ``null`` if only waiting helps.
    """

    reason: Reason
    text: str
    remedy: str | None


class JobView(msgspec.Struct, frozen=True):
    """One job.

    ``job`` is its name here, ``id`` its resource's id. ``reports`` is ``null`` for a collection
    that has no batch yet. The job is due at ``run_at``. ``attempts`` counts failures in a row,
    ``sends`` the requests whose outcome is unknown, ``crashes`` how often the daemon ended while it
    ran.
    """

    job: str
    kind: Literal["aggregation", "collection"]
    role: str
    task: str
    id: str
    state: str
    reports: int | None
    created_at: Moment
    run_at: Moment
    attempts: int
    sends: int
    crashes: int
    last_error: str | None
    waits: Waits


class Progress(msgspec.Struct, frozen=True):
    """Reports of a waiting collection: ``aggregated`` in its batch, or in the fullest batch that it
    may take, of at least ``needed``; ``in_jobs`` and ``unassigned`` are undecided.
    """

    aggregated: int
    in_jobs: int
    unassigned: int
    needed: int


class JobDetail(msgspec.Struct, frozen=True):
    """One job, its task and its peer.

    ``task_state`` is ``unreadable`` for a task that this daemon can't read. ``leased_until`` is
    ``null`` unless a step works on the job. ``location`` is the job's URL at the Helper. ``peer``
    is ``null`` for a Helper's job, ``progress`` for all but a waiting collection. ``error`` and
    ``detail`` are what the Collector gets for a failed collection.
    """

    job: JobView
    task_state: str
    leased_until: Moment | None
    location: str | None
    peer: PeerView | None
    progress: Progress | None
    error: str | None
    detail: str | None


@dataclass(frozen=True, slots=True)
class Look:
    """Jobs with their surroundings, from one snapshot. ``held`` counts the jobs that steps hold,
    and those of them that compute.
    """

    rows: Sequence[JobRow]
    tasks: Mapping[int, SealedTask]
    held: tuple[int, int]
    progress: Progress | None = None


def view(context: Context, look: Look, row: JobRow) -> JobView:
    """Return a row as responses show it."""
    why = _why(context, look, row)
    return JobView(
        row.name,
        row.kind,
        row.role,
        look.tasks[row.task_pk].id_text,
        b64url_encode(row.id),
        row.state.value,
        row.n,
        rfc3339(row.created_at),
        rfc3339(row.run_at),
        row.attempts,
        row.sends,
        row.crashes,
        row.last_error,
        Waits(why.reason, why.text, why.remedy),
    )


def detail(context: Context, look: Look) -> JobDetail:
    """Return the one job of ``look`` in detail."""
    (row,) = look.rows
    sealed = look.tasks[row.task_pk]
    state = _task_state(context, sealed)
    endpoint = _endpoint(sealed)
    leased = row.lease_until if _is_leased(row, context.now()) else None
    return JobDetail(
        view(context, look, row),
        "unreadable" if state is None else state.value,
        None if leased is None else rfc3339(leased),
        row.location,
        None if endpoint is None else peer_view(context, endpoint),
        look.progress,
        row.error,
        row.detail,
    )


def look_at(tx: Tx, rows: Sequence[JobRow], now: int, progress: Progress | None = None) -> Look:
    """Return ``rows`` with their surroundings in the same snapshot."""
    tasks = {each.task_pk: each for each in task_table.all_tasks(tx)}
    return Look(rows, tasks, leases.held(tx, now), progress)


def _why(context: Context, look: Look, row: JobRow) -> Why:
    sealed, now = look.tasks[row.task_pk], context.now()
    endpoint = _endpoint(sealed)
    facts = JobFacts(
        row.name,
        row.state,
        row.run_at,
        _is_leased(row, now),
        row.attempts,
        row.crashes,
        row.last_error,
        row.refused_ms,
        int(1000 * context.config.give_up_after[row.kind]),
        row.given_up,
    )
    running, computing = look.held
    around = Surroundings(
        now,
        sealed.id_text,
        _task_state(context, sealed),
        None if endpoint is None else _peer_facts(context, endpoint),
        computing,
        context.config.leader.computing_slots,
        running,
    )
    return why_waiting(facts, around)


def _peer_facts(context: Context, endpoint: str) -> PeerFacts:
    peer = context.peers.at(endpoint)
    return PeerFacts(endpoint, peer.paused, peer.failures, peer.blocked_for, peer.free)


def _task_state(context: Context, sealed: SealedTask) -> TaskState | None:
    """Return the task's state; ``None`` if it should be served and can't be read."""
    unreadable = sealed.state.is_served and sealed.task_pk in context.tasks.unreadable
    return None if unreadable else sealed.state


def _endpoint(sealed: SealedTask) -> str | None:
    """Return the Helper's endpoint of a Leader's task."""
    try:
        task = sealed.public()
    except UnreadableTask:
        return None
    return task.configuration.helper_aggregator_endpoint if task.is_leader else None


def _is_leased(row: JobRow, now: int) -> bool:
    return row.lease_until is not None and row.lease_until > now
