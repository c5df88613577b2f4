"""Metrics that are states, not events, read when Prometheus asks for them.

They come from one reading transaction, the disk, and the process's memory. Left out: events, which
are counted where they happen (``dapd.telemetry.metrics``).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass

import trio
from prometheus_client.metrics_core import CounterMetricFamily, Metric
from prometheus_client.registry import Collector

from dapd.admin.process_gauges import disk, process
from dapd.advice.waiting import Reason
from dapd.commits.tasks import task_standing
from dapd.datastore import Tx, batches, counters, keys, tasks
from dapd.datastore.backlog import Unfinished, WholeBacklog, whole_backlog
from dapd.datastore.tasks import SealedTask
from dapd.protocol.keys import KeyState, StoredKey
from dapd.protocol.states import (
    EXCHANGING,
    UNFINISHED,
    CollectionState,
    HelperJobState,
    JobState,
    LeaderJobState,
)
from dapd.protocol.task import Instant, Task, TaskState
from dapd.reports import ReportError
from dapd.runtime.context import Context
from dapd.telemetry.metrics import Labels, gauge, instant, reading

UNREADABLE = "unreadable"
"""The state of a task or HPKE key whose secrets no configured sealing key opens."""
NOT_BLOCKED = "nothing"
_ROLES = ("leader", "helper")
_JOB_STATES: dict[Labels, type[JobState]] = {
    ("aggregation", "leader"): LeaderJobState,
    ("aggregation", "helper"): HelperJobState,
    ("collection", "leader"): CollectionState,
}
_REPORT_ERRORS = tuple(error.name.lower() for error in ReportError if error)
_OTHER = "other"
_OUTCOMES = {
    "upload": ("accepted", *_REPORT_ERRORS, _OTHER),
    "aggregate": ("finished", *_REPORT_ERRORS, "lost", _OTHER),
}
_EVENTS = (
    "collection_expired",
    "collection_given_up",
    "contribution_dropped",
    "contribution_lost",
    "contribution_uncollectable",
)


@dataclass(frozen=True, slots=True)
class _Read:
    backlog: WholeBacklog
    totals: list[tuple[str, str, int]]
    keys: list[StoredKey]
    tasks: list[SealedTask]
    quarantined: int
    expires: list[int]


class Gauges(Collector):
    """The metric families of the last ``refresh``, in the daemon's registry."""

    def __init__(self, context: Context) -> None:
        self._context = context
        self._families: list[Metric] = []
        context.metrics.registry.register(self)

    def collect(self) -> Iterable[Metric]:
        return self._families

    async def refresh(self) -> None:
        """Read everything now."""
        context = self._context
        served = context.tasks.all()
        read = await context.read(_read, served, context.instant())
        look = context.datastore.path, context.disk.min_free_bytes
        families = await trio.to_thread.run_sync(disk, *look)
        unreadable = frozenset(context.tasks.unreadable)
        tasks_found = await trio.to_thread.run_sync(_tasks, read, unreadable)
        self._families = [
            *_reports(read.totals),
            *_jobs(context, read.backlog),
            *_waiting(context, read.backlog),
            *tasks_found,
            *_keys(read.keys, frozenset(context.keyrings.keyring.config_ids)),
            *process(context),
            *families,
        ]


def _read(tx: Tx, served: list[Task], at: Instant) -> _Read:
    expires = [
        first
        for task in served
        if task.is_leader and (first := task_standing(tx, task, at).collect_before) is not None
    ]
    return _Read(
        whole_backlog(tx),
        counters.totals(tx),
        keys.all_keys(tx),
        tasks.all_tasks(tx),
        batches.quarantined_tasks(tx),
        expires,
    )


def _reports(totals: list[tuple[str, str, int]]) -> Iterator[Metric]:
    """Every possible outcome starts at 0, so that Prometheus sees the first one as a rise."""
    uploaded: Counter[Labels] = Counter({(each,): 0 for each in _OUTCOMES["upload"]})
    aggregated: Counter[Labels] = Counter(
        {(role, each): 0 for role in _ROLES for each in _OUTCOMES["aggregate"]}
    )
    events: Counter[Labels] = Counter({(each,): 0 for each in _EVENTS})
    for role, name, value in totals:
        head, _, outcome = name.partition("_")
        known = outcome if outcome in _OUTCOMES.get(head, ()) else _OTHER
        match head:
            case "upload":
                uploaded[known,] += value
            case "aggregate":
                aggregated[role, known] += value
            case _:
                events[name,] += value
    yield _counted("uploaded_reports", "Reports uploaded.", ("outcome",), uploaded)
    yield _counted(
        "aggregated_reports", "Reports decided by aggregation.", ("role", "outcome"), aggregated
    )
    yield _counted(
        "task_events",
        "Collections without a result, and aggregated reports that no result contains.",
        ("event",),
        events,
    )


def _counted(name: str, text: str, labels: Labels, values: Counter[Labels]) -> Metric:
    family = CounterMetricFamily(f"dapd_{name}", text, labels=labels)
    for each, value in values.items():
        family.add_metric(each, value)
    return family


def _jobs(context: Context, found: WholeBacklog) -> Iterator[Metric]:
    counts: Counter[Labels] = Counter(
        {
            (kind, role, state.value, NOT_BLOCKED): 0
            for (kind, role), states in _JOB_STATES.items()
            for state in states
            if state in UNFINISHED
        }
    )
    oldest: dict[Labels, float] = {}
    blocked_by = _Obstacles(context)
    for kind, rows in (
        ("aggregation", found.aggregation_jobs),
        ("collection", found.collection_jobs),
    ):
        for row in rows:
            labels = kind, row.role, row.state.value, blocked_by(row)
            counts[labels] += row.jobs
            made = row.created_at / 1000
            oldest[labels] = min(made, oldest.get(labels, made))
    names = "kind", "role", "state", "blocked_by"
    yield gauge("jobs", "Unfinished jobs.", names, counts)
    yield gauge("jobs_oldest_timestamp_seconds", "When the oldest was made.", names, oldest)


class _Obstacles:
    """Tells what outside of a job keeps it from running, due or not."""

    def __init__(self, context: Context) -> None:
        self._served = context.tasks.served
        self._peers = context.peers

    def __call__(self, row: Unfinished) -> str:
        task = self._served(row.task_pk)
        if task is None:
            return Reason.TASK_NOT_SERVED.value
        if row.state not in EXCHANGING:
            return NOT_BLOCKED
        peer = self._peers.at(task.configuration.helper_aggregator_endpoint)
        if peer.paused:
            return Reason.PEER_PAUSED.value
        return NOT_BLOCKED if peer.down_for is None else Reason.PEER_UNREACHABLE.value


def _waiting(context: Context, found: WholeBacklog) -> Iterator[Metric]:
    yield reading(
        "waiting_reports",
        "Reports that no aggregation job has yet.",
        sum(row.n for row in found.waiting),
    )
    served = context.tasks.served
    moments = [row.run_at for row in found.waiting if served(row.task_pk) is not None]
    yield instant(
        "waiting_oldest",
        "Since when the first of them that belong to served tasks may be aggregated.",
        min(moments, default=None),
    )


def _tasks(read: _Read, unreadable_pks: Collection[int]) -> list[Metric]:
    """Count the tasks. This takes long for many, so it runs in a thread."""
    states = [state.value for state in TaskState if state is not TaskState.PURGED]
    counts: Counter[Labels] = Counter(
        {(role, state): 0 for role in _ROLES for state in (*states, UNREADABLE)}
    )
    for task in read.tasks:
        if task.state is not TaskState.PURGED:
            unreadable = task.state.is_served and task.task_pk in unreadable_pks
            state = UNREADABLE if unreadable else task.state.value
            counts[task.role.name.lower(), state] += 1
    return [
        gauge("tasks", "Tasks.", ("role", "state"), counts),
        reading(
            "tasks_quarantined",
            "Tasks of which a restore has closed batches that nobody has accepted since.",
            read.quarantined,
        ),
        instant(
            "uncollected_expiry",
            "When the first reports of a Leader's task that nobody has collected expire.",
            min(read.expires, default=None),
        ),
    ]


def _keys(found: list[StoredKey], readable: frozenset[int]) -> Iterator[Metric]:
    counts: Counter[Labels] = Counter(
        {(state,): 0 for state in (*(state.value for state in KeyState), UNREADABLE)}
    )
    active = []
    for key in found:
        if key.state is not KeyState.DELETED and key.config_id not in readable:
            counts[UNREADABLE,] += 1
            continue
        counts[key.state.value,] += 1
        if key.state is KeyState.ACTIVE:
            active.append(key.changed_at)
    yield gauge("hpke_keys", "HPKE keys.", ("state",), counts)
    yield instant("hpke_key_active", "When the newest became active.", max(active, default=None))
