"""Estimate how long the Helper's jobs take, for the ``auto`` mode and for Retry-After.

An estimate is the number of reports times the task's seconds per report, as this process has
measured them; before it has, they follow from the length of the encoded measurement.
"""

from __future__ import annotations

import os

from dapd.protocol.task import Task

_WEIGHT_OF_NEWEST = 0.2
_FIRST_SECONDS = 40e-6
_FIRST_SECONDS_PER_ELEMENT = 0.4e-6


class Rates:
    """The speed of each task, and the jobs that wait or run here, from ``begin`` to ``end``."""

    def __init__(self, cores: int | None = None) -> None:
        self._cores = cores or len(os.sched_getaffinity(0))
        self._seconds: dict[int, float] = {}
        self._ahead: dict[bytes, float] = {}

    def seconds_per_report(self, task: Task) -> float:
        """Return one core's seconds per report: a moving average of the jobs verified here."""
        first = _FIRST_SECONDS + _FIRST_SECONDS_PER_ELEMENT * task.vdaf.measurement_len
        return self._seconds.get(task.task_pk, first)

    def note(self, task: Task, seconds_per_report: float) -> None:
        """Note how long a job of this task took per report."""
        old = self._seconds.get(task.task_pk, seconds_per_report)
        self._seconds[task.task_pk] = old + _WEIGHT_OF_NEWEST * (seconds_per_report - old)

    def estimate(self, task: Task, count: int) -> float:
        """Return how many seconds ``count`` reports take on all cores."""
        return count * self.seconds_per_report(task) / self._cores

    def begin(self, job_id: bytes, task: Task, count: int) -> None:
        """Count the job as work of this process from now on."""
        self._ahead[job_id] = self.estimate(task, count)

    def end(self, job_id: bytes) -> None:
        """Count the job no more: it is finished or deleted, or was never counted."""
        self._ahead.pop(job_id, None)

    @property
    def ahead(self) -> float:
        """The seconds that all cores need for the jobs that wait or run in this process."""
        return sum(self._ahead.values())
