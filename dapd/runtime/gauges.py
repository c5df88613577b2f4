"""What is a state of the daemon, not an event, read when Prometheus asks for it.

One reading transaction, a look at the disk and at what the process knows. Left out: events, which
are counted where they happen (``dapd.runtime.metrics``).
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import trio
from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from dapd.commits.delete_task import standing
from dapd.datastore import Tx, counters, keys
from dapd.datastore.backup import last_backup
from dapd.datastore.overview import Overview, Unfinished, overview
from dapd.protocol.keys import KeyState
from dapd.protocol.task import Instant, Task
from dapd.runtime.context import Context


@dataclass(frozen=True, slots=True)
class _Read:
    overview: Overview
    totals: list[tuple[str, str, int]]
    keys: list[tuple[KeyState, int]]
    expires: dict[int, int]


class Gauges(Collector):
    """The families of the last ``refresh``; registered with the daemon's registry once."""

    def __init__(self, context: Context) -> None:
        self._context = context
        self._families: list[Metric] = []
        context.metrics.registry.register(self)

    def collect(self) -> Iterable[Metric]:
        return self._families

    async def refresh(self) -> None:
        """Look at everything now."""
        context = self._context
        tasks = context.tasks.all()
        read = await context.read(_read, tasks, context.instant())
        disk = await trio.to_thread.run_sync(_disk, context.datastore.path)
        self._families = [
            *_reports(read.totals),
            *_jobs(read.overview),
            *_tasks(tasks, read.expires),
            *_keys(read.keys),
            *_process(context),
            *_peers(context),
            *_clock(context),
            *_certificate(context),
            *disk,
        ]


def _read(tx: Tx, tasks: list[Task], at: Instant) -> _Read:
    expires = {
        task.task_pk: first
        for task in tasks
        if (first := standing(tx, task, at).collect_before) is not None
    }
    states = [(key.state, key.changed_at) for key in keys.all_keys(tx)]
    return _Read(overview(tx), counters.totals(tx), states, expires)


def _reports(totals: list[tuple[str, str, int]]) -> Iterator[Metric]:
    uploaded = CounterMetricFamily(
        "dapd_uploaded_reports", "Reports uploaded, by outcome.", labels=["outcome"]
    )
    aggregated = CounterMetricFamily(
        "dapd_aggregated_reports",
        "Reports decided by aggregation, by outcome.",
        labels=["role", "outcome"],
    )
    others = CounterMetricFamily(
        "dapd_task_events", "What else tasks count, such as expired collections.", labels=["event"]
    )
    for role, name, value in totals:
        head, _, outcome = name.partition("_")
        match head:
            case "upload":
                uploaded.add_metric([outcome], value)
            case "aggregate":
                aggregated.add_metric([role, outcome], value)
            case _:
                others.add_metric([name], value)
    yield from (uploaded, aggregated, others)


def _jobs(found: Overview) -> Iterator[Metric]:
    jobs = _gauge("jobs", "Unfinished jobs.", "kind", "role", "state")
    oldest = _gauge("jobs_oldest_timestamp_seconds", "When the oldest was made.", "kind", "role")
    for kind, rows in (
        ("aggregation", found.aggregation_jobs),
        ("collection", found.collection_jobs),
    ):
        by_state: Counter[tuple[str, str]] = Counter()
        for row in rows:
            by_state[row.role, row.state] += row.jobs
        for (role, state), count in by_state.items():
            jobs.add_metric([kind, role, state], count)
        for role in sorted({row.role for row in rows}):
            oldest.add_metric([kind, role], _oldest(rows, role) / 1000)
    yield jobs
    yield oldest
    waiting = _gauge("waiting_reports", "Reports that no aggregation job has yet.")
    waiting.add_metric([], sum(row.n for row in found.waiting))
    yield waiting
    if found.waiting:
        since = _gauge("waiting_oldest_timestamp_seconds", "Since when the first of them waits.")
        since.add_metric([], min(row.run_at for row in found.waiting) / 1000)
        yield since


def _oldest(rows: list[Unfinished], role: str) -> int:
    return min(row.created_at for row in rows if row.role == role)


def _tasks(tasks: list[Task], expires: dict[int, int]) -> Iterator[Metric]:
    count = _gauge("tasks", "Tasks that are served.", "role", "state")
    by_state = Counter((task.role.name.lower(), task.state.value) for task in tasks)
    for labels, number in by_state.items():
        count.add_metric(list(labels), number)
    yield count
    if expires:
        first = _gauge(
            "uncollected_expiry_timestamp_seconds",
            "When the first reports of a task that nobody has collected expire.",
            "role",
        )
        for role in sorted({task.role.name.lower() for task in tasks}):
            moments = [
                expires[task.task_pk]
                for task in tasks
                if task.role.name.lower() == role and task.task_pk in expires
            ]
            if moments:
                first.add_metric([role], min(moments) / 1000)
        yield first


def _keys(found: list[tuple[KeyState, int]]) -> Iterator[Metric]:
    count = _gauge("hpke_keys", "HPKE keys.", "state")
    by_state = Counter(state for state, _ in found)
    for state in KeyState:
        count.add_metric([state.value], by_state[state])
    yield count
    active = [changed for state, changed in found if state is KeyState.ACTIVE]
    if active:
        since = _gauge("hpke_key_active_timestamp_seconds", "When the newest became active.")
        since.add_metric([], max(active) / 1000)
        yield since


def _process(context: Context) -> Iterator[Metric]:
    queue = _gauge("upload_queue_requests", "Upload requests that wait for their group.")
    queue.add_metric([], context.lane.waiting)
    ids = _gauge("replay_index_ids", "Report ids in memory.")
    ids.add_metric([], len(context.datastore.replay))
    yield from (queue, ids)


def _peers(context: Context) -> Iterator[Metric]:
    failures = _gauge("peer_failures", "Failed requests in a row.", "peer")
    free = _gauge("peer_permits_free", "Requests that may start now.", "peer")
    for endpoint in context.tasks.helpers():
        peer = context.peers.at(endpoint)
        failures.add_metric([endpoint], peer.failures)
        free.add_metric([endpoint], peer.free)
    yield from (failures, free)


def _clock(context: Context) -> Iterator[Metric]:
    state = context.safe_clock.look()
    held = _gauge("clock_held", "1 while the clock is in doubt and nothing expires.")
    held.add_metric([], int(state.held is not None))
    safe = _gauge("safe_clock_timestamp_seconds", "The time by which data expires.")
    safe.add_metric([], state.safe / 1000)
    offset = _gauge("clock_offset_seconds", "How far a peer's clock is ahead of ours.", "peer")
    for endpoint, ahead in state.offsets.items():
        offset.add_metric([endpoint], ahead / 1000)
    yield from (held, safe, offset)


def _certificate(context: Context) -> Iterator[Metric]:
    if identity := context.certificates.identity:
        expiry = _gauge("certificate_expiry_timestamp_seconds", "When the listener's expires.")
        expiry.add_metric([], identity.not_after / 1000)
        yield expiry


def _disk(database: Path) -> list[Metric]:
    found = os.statvfs(database.parent)
    sizes = {
        "disk_free_bytes": ("Free space beside the database.", found.f_bavail * found.f_frsize),
        "database_bytes": ("The database file.", _size(database)),
        "wal_bytes": ("Its write-ahead log.", _size(database.with_name(database.name + "-wal"))),
    }
    families = []
    for name, (text, value) in sizes.items():
        family = _gauge(name, text)
        family.add_metric([], value)
        families.append(family)
    if (backup := last_backup(database)) is not None:
        family = _gauge("backup_last_success_timestamp_seconds", "The state of the last backup.")
        family.add_metric([], backup.state_of / 1000)
        families.append(family)
    return [*families]


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def _gauge(name: str, text: str, *labels: str) -> GaugeMetricFamily:
    return GaugeMetricFamily(f"dapd_{name}", text, labels=labels)
