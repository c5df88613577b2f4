"""How long the Helper's work takes and how much lies ahead, for ``auto`` and Retry-After.

The estimate is count x seconds per report of the task, as measured in this process; before the
first measurement, by the length of the encoded measurement.
"""

from __future__ import annotations

import os

from dapd.protocol.task import Task

_WEIGHT_OF_NEWEST = 0.2
_FIRST_SECONDS = 40e-6
_FIRST_SECONDS_PER_ELEMENT = 0.4e-6


class Rates:
    """Jobs are known by their id from being admitted or stored until they are finished."""

    def __init__(self, cores: int | None = None) -> None:
        self._cores = cores or len(os.sched_getaffinity(0))
        self._seconds: dict[int, float] = {}
        self._ahead: dict[bytes, float] = {}

    def seconds_per_report(self, task: Task) -> float:
        """Of one core: a moving average of the jobs verified here."""
        first = _FIRST_SECONDS + _FIRST_SECONDS_PER_ELEMENT * task.vdaf.measurement_len
        return self._seconds.get(task.task_pk, first)

    def note(self, task: Task, seconds_per_report: float) -> None:
        """A job of this task was verified at this price."""
        old = self._seconds.get(task.task_pk, seconds_per_report)
        self._seconds[task.task_pk] = old + _WEIGHT_OF_NEWEST * (seconds_per_report - old)

    def estimate(self, task: Task, count: int) -> float:
        """Seconds that ``count`` reports take on all cores."""
        return count * self.seconds_per_report(task) / self._cores

    def begin(self, job_id: bytes, task: Task, count: int) -> None:
        """The job waits or runs in this process from now on."""
        self._ahead[job_id] = self.estimate(task, count)

    def end(self, job_id: bytes) -> None:
        """The job is finished, deleted, or nobody's here."""
        self._ahead.pop(job_id, None)

    @property
    def ahead(self) -> float:
        """Seconds of work that wait or run in this process, spread over all cores."""
        return sum(self._ahead.values())
