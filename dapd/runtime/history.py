"""The last hour's rates and backlogs, in memory, for the status page.

Left out: adding the points (``dapd.upkeep.history``), and more than an hour, which Prometheus keeps
(``dapd.telemetry.metrics``).
"""

from __future__ import annotations

from array import array
from dataclasses import dataclass, field

from dapd.datastore.counters import TaskTotals

POINTS = 120
RECENT = 10
"""How many points, five minutes' worth, a present rate is measured over."""


def _series() -> array[float]:
    return array("d")


@dataclass(slots=True)
class TaskHistory:
    """How many of a task's reports were accepted, and aggregated, between each two points."""

    accepted: array[float] = field(default_factory=_series)
    aggregated: array[float] = field(default_factory=_series)


@dataclass(slots=True)
class History:
    """Series of at most ``POINTS`` points, newest last; a task's may be shorter.

    ``seconds`` is the time between a point and the one before it. In that time, so many reports
    were ``accepted`` and ``aggregated``, and so many responses had a status from 500 on
    (``errors``); ``late`` is by how many seconds the event loop was late on average. ``unfinished``
    jobs and ``queued`` uploads were there at its end. ``tasks`` are by id.
    """

    seconds: array[float] = field(default_factory=_series)
    accepted: array[float] = field(default_factory=_series)
    aggregated: array[float] = field(default_factory=_series)
    errors: array[float] = field(default_factory=_series)
    unfinished: array[float] = field(default_factory=_series)
    queued: array[float] = field(default_factory=_series)
    late: array[float] = field(default_factory=_series)
    tasks: dict[bytes, TaskHistory] = field(default_factory=dict)
    _before: Totals | None = None

    def add(self, now: Totals, *, unfinished: int, queued: int) -> None:
        """Add a point; the first call only sets the totals to count from."""
        before, self._before = self._before, now
        if before is None:
            return
        self._add_tasks(before.tasks, now.tasks)
        slept = now.sleeps - before.sleeps
        for series, value in (
            (self.seconds, now.at - before.at),
            (self.accepted, sum(task.accepted[-1] for task in self.tasks.values())),
            (self.aggregated, sum(task.aggregated[-1] for task in self.tasks.values())),
            (self.errors, now.errors - before.errors),
            (self.unfinished, unfinished),
            (self.queued, queued),
            (self.late, (now.late - before.late) / slept if slept else 0.0),
        ):
            _append(series, value)

    def rates(self, counts: array[float]) -> list[float]:
        """Convert each point of ``counts`` to a number per second."""
        seconds = self.seconds[len(self.seconds) - len(counts) :]
        return [count / length for count, length in zip(counts, seconds, strict=True)]

    def rate(self, counts: array[float]) -> float:
        """Return how many ``counts`` there were per second in the last five minutes."""
        seconds = sum(self.seconds[-RECENT:])
        return sum(counts[-RECENT:]) / seconds if seconds else 0.0

    def _add_tasks(self, before: dict[bytes, TaskTotals], now: dict[bytes, TaskTotals]) -> None:
        self.tasks = {task_id: self.tasks.get(task_id) or TaskHistory() for task_id in now}
        for task_id, task in self.tasks.items():
            old, new = before.get(task_id, TaskTotals()), now[task_id]
            _append(task.accepted, new.accepted - old.accepted)
            _append(task.aggregated, new.aggregated - old.aggregated)


@dataclass(frozen=True, slots=True)
class Totals:
    """Totals since the start, at one moment of Trio's clock (s).

    ``errors`` counts responses with a status from 500 on; ``late`` is by how many seconds the event
    loop was late in all of its ``sleeps``.
    """

    at: float
    tasks: dict[bytes, TaskTotals]
    errors: float
    late: float
    sleeps: float


def _append(series: array[float], value: float) -> None:
    series.append(value)
    del series[:-POINTS]
