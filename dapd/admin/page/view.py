"""The page's content, from the daemon's status, its tasks' counters and the last hour.

Left out: formats (``dapd.admin.page.formatting``) and markup (``page.html``).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime

from dapd.admin.page.formatting import milliseconds, number, rate
from dapd.admin.status import StatusView, TaskLine
from dapd.datastore.counters import TaskTotals
from dapd.messages.common import b64url_decode
from dapd.runtime.history import POINTS, History, TaskHistory

MOST_TASKS = 100
"""Tasks on the page; `dapd task list` shows them all."""
_HEIGHT = 30
"""Of a chart, in its own units; a point is one unit wide."""


@dataclass(frozen=True, slots=True)
class Chart:
    """One series of the last hour, newest value last; ``said`` formats a value."""

    title: str
    values: Sequence[float]
    said: Callable[[float], str]

    @property
    def lowest(self) -> str:
        return self.said(min(self.values))

    @property
    def highest(self) -> str:
        return self.said(max(self.values))

    @property
    def last(self) -> str:
        return self.said(self.values[-1])

    @property
    def label(self) -> str:
        """The chart in words, for screen readers."""
        if not self.values:
            return f"{self.title}: nothing yet"
        return (
            f"{self.title}, the last hour: lowest {self.lowest}, highest {self.highest}, "
            f"last {self.last}"
        )

    @property
    def line(self) -> str:
        """The points of an SVG polyline that ends at the right edge."""
        top, first = max(self.values, default=0) or 1, POINTS - len(self.values)
        return " ".join(
            f"{first + place},{_HEIGHT - 1 - (_HEIGHT - 2) * value / top:.3g}"
            for place, value in enumerate(self.values)
        )

    @property
    def area(self) -> str:
        """The points of the polygon below that line."""
        return f"{POINTS - len(self.values)},{_HEIGHT} {self.line} {POINTS - 1},{_HEIGHT}"


@dataclass(frozen=True, slots=True)
class TaskRow:
    """A task with the counts of its reports. ``chart`` shows a Leader's uploads or a Helper's
    aggregated reports. Rates are per second.
    """

    line: TaskLine
    totals: TaskTotals
    accepted_rate: float
    aggregated_rate: float
    chart: Chart


@dataclass(frozen=True, slots=True)
class Page:
    """The content of the page. ``charts`` is empty until something is measured; ``left_out`` counts
    the tasks that are not in ``tasks``.
    """

    status: StatusView
    now: datetime
    charts: tuple[Chart, ...]
    tasks: tuple[TaskRow, ...]
    left_out: int

    @property
    def headline(self) -> str:
        """One line that says whether there is something to do."""
        match len(self.status.to_do):
            case 0:
                return "Nothing to do"
            case 1:
                return "One thing to do"
            case count:
                return f"{count} things to do"

    @property
    def last_error_at(self) -> datetime | None:
        error = self.status.last_error
        return None if error is None else datetime.fromisoformat(error.at)


def make_page(
    status: StatusView, totals: dict[bytes, TaskTotals], history: History, now: datetime
) -> Page:
    """Build the page, a copy that later changes don't touch."""
    lines = _shown(status, history)
    tasks = tuple(_task(line, totals, history) for line in lines)
    return Page(status, now, _charts(history), tasks, len(status.tasks) - len(tasks))


def _charts(history: History) -> tuple[Chart, ...]:
    if not history.seconds:
        return ()
    return (
        Chart("Uploads accepted", history.rates(history.accepted), rate),
        Chart("Reports aggregated", history.rates(history.aggregated), rate),
        Chart("Unfinished jobs", list(history.unfinished), number),
        Chart("Requests failed", history.rates(history.errors), rate),
        Chart("Uploads queued", list(history.queued), number),
        Chart("Event loop late", list(history.late), milliseconds),
    )


def _shown(status: StatusView, history: History) -> Sequence[TaskLine]:
    """Return the tasks in the order they were added; of too many, the unreadable and busiest."""
    if len(status.tasks) <= MOST_TASKS:
        return status.tasks

    def busy(line: TaskLine) -> tuple[bool, float]:
        found = history.tasks.get(b64url_decode(line.task))
        reports = 0.0 if found is None else sum(found.accepted) + sum(found.aggregated)
        return line.state == "unreadable", reports

    chosen = {line.task for line in sorted(status.tasks, key=busy, reverse=True)[:MOST_TASKS]}
    return [line for line in status.tasks if line.task in chosen]


def _task(line: TaskLine, totals: dict[bytes, TaskTotals], history: History) -> TaskRow:
    task_id = b64url_decode(line.task)
    found = history.tasks.get(task_id) or TaskHistory()
    title, counts = (
        ("Uploads accepted", found.accepted)
        if line.role == "leader"
        else ("Reports aggregated", found.aggregated)
    )
    return TaskRow(
        line,
        totals.get(task_id, TaskTotals()),
        history.rate(found.accepted),
        history.rate(found.aggregated),
        Chart(title, history.rates(counts), rate),
    )
