"""The last hour in a few numbers, for a person who looks: what came, what was done, what waits.

Twice a minute one reading transaction and a look at the metrics become a point of each series. An
hour is kept, in memory, and goes with the process. Left out: more than an hour, which is for who
gathers the metrics (``dapd.runtime.metrics``).
"""

from __future__ import annotations

from array import array
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import trio

from dapd.datastore import Tx, counters
from dapd.datastore.counters import TaskTotals
from dapd.datastore.overview import overview
from dapd.errors import DatastoreError

if TYPE_CHECKING:
    from dapd.runtime.context import Context
    from dapd.runtime.metrics import Metrics

EVERY = 30.0
POINTS = 120
RECENT = 10
"""Points, five minutes, over which a present rate is measured."""


def _series() -> array[float]:
    return array("d")


@dataclass(slots=True)
class TaskHistory:
    """One task's reports that were accepted, and aggregated, between one point and the next."""

    accepted: array[float] = field(default_factory=_series)
    aggregated: array[float] = field(default_factory=_series)


@dataclass(slots=True)
class History:
    """Series of as many points, the newest last, ``POINTS`` at most; a task's may be shorter.

    ``seconds`` is how long before each point the one before it was. ``accepted`` and ``aggregated``
    reports and ``errors``, which are answers with a status from 500 on, happened in that time;
    ``unfinished`` jobs and ``queued`` uploads were there at its end; ``late`` is by how many
    seconds the event loop was late in it, on average. ``tasks`` are by id.
    """

    seconds: array[float] = field(default_factory=_series)
    accepted: array[float] = field(default_factory=_series)
    aggregated: array[float] = field(default_factory=_series)
    errors: array[float] = field(default_factory=_series)
    unfinished: array[float] = field(default_factory=_series)
    queued: array[float] = field(default_factory=_series)
    late: array[float] = field(default_factory=_series)
    tasks: dict[bytes, TaskHistory] = field(default_factory=dict)
    _before: _Totals | None = None

    async def take(self, context: Context) -> None:
        """Add a point; the first call only sees from where to count. Raises ``DatastoreError``."""
        tasks, unfinished = await context.read(_read)
        now = _totals(tasks, context.metrics)
        before, self._before = self._before, now
        if before is None:
            return
        self._add_tasks(before.tasks, tasks)
        slept = now.sleeps - before.sleeps
        for series, value in (
            (self.seconds, now.at - before.at),
            (self.accepted, sum(task.accepted[-1] for task in self.tasks.values())),
            (self.aggregated, sum(task.aggregated[-1] for task in self.tasks.values())),
            (self.errors, now.errors - before.errors),
            (self.unfinished, unfinished),
            (self.queued, context.lane.waiting),
            (self.late, (now.late - before.late) / slept if slept else 0.0),
        ):
            _add(series, value)

    def rates(self, counts: array[float]) -> list[float]:
        """``counts`` per second, of each of its points."""
        seconds = self.seconds[len(self.seconds) - len(counts) :]
        return [count / length for count, length in zip(counts, seconds, strict=True)]

    def rate(self, counts: array[float]) -> float:
        """``counts`` per second at present."""
        seconds = sum(self.seconds[-RECENT:])
        return sum(counts[-RECENT:]) / seconds if seconds else 0.0

    def _add_tasks(self, before: dict[bytes, TaskTotals], now: dict[bytes, TaskTotals]) -> None:
        self.tasks = {task_id: self.tasks.get(task_id) or TaskHistory() for task_id in now}
        for task_id, task in self.tasks.items():
            old, new = before.get(task_id, TaskTotals()), now[task_id]
            _add(task.accepted, new.accepted - old.accepted)
            _add(task.aggregated, new.aggregated - old.aggregated)


@dataclass(frozen=True, slots=True)
class _Totals:
    """What only grows, at one moment of Trio's clock."""

    at: float
    tasks: dict[bytes, TaskTotals]
    errors: float
    late: float
    sleeps: float


async def run(context: Context) -> None:
    """Until draining."""
    while True:
        # The next point spans this time too, and whoever needs the database says more.
        with suppress(DatastoreError):
            await context.history.take(context)
        with trio.move_on_after(EVERY):
            await context.draining.wait()
            return


def _read(tx: Tx) -> tuple[dict[bytes, TaskTotals], int]:
    found = overview(tx)
    jobs = sum(row.jobs for row in (*found.aggregation_jobs, *found.collection_jobs))
    return counters.by_task(tx), jobs


def _totals(tasks: dict[bytes, TaskTotals], metrics: Metrics) -> _Totals:
    errors = sum(
        sample.value
        for family in metrics.http_requests.collect()
        for sample in family.samples
        if sample.labels["status"].startswith("5")
    )
    lateness = {
        sample.name: sample.value
        for family in metrics.loop_lag.collect()
        for sample in family.samples
    }
    late, sleeps = (lateness[f"dapd_event_loop_lag_seconds_{end}"] for end in ("sum", "count"))
    return _Totals(trio.current_time(), tasks, errors, late, sleeps)


def _add(series: array[float], value: float) -> None:
    series.append(value)
    del series[:-POINTS]
