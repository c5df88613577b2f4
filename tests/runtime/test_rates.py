"""Estimates of how long the Helper's jobs take."""

from __future__ import annotations

import pytest

from dapd.messages.task import Prio3SumVec
from dapd.runtime.rates import Rates
from tests.task_pair import task_pair


def test_before_the_first_job_the_price_follows_the_measurements_length() -> None:
    """It is 40 us and 0.4 us for each field element, on one core."""
    task = task_pair(Prio3SumVec(100, 3, 14)).helper
    rates = Rates(cores=2)
    assert rates.seconds_per_report(task) == pytest.approx(40e-6 + 0.4e-6 * 200)
    assert rates.estimate(task, 10) == pytest.approx(5 * rates.seconds_per_report(task))


def test_the_price_moves_towards_what_is_measured() -> None:
    """The first measurement replaces the guess; each later one weighs a fifth."""
    task, rates = task_pair().helper, Rates(cores=1)
    rates.note(task, 1.0)
    assert rates.seconds_per_report(task) == 1.0
    rates.note(task, 2.0)
    assert rates.seconds_per_report(task) == pytest.approx(1.2)


def test_work_lies_ahead_from_its_beginning_to_its_end() -> None:
    """A job that is begun twice, by the store and by its step, counts once."""
    task, rates = task_pair().helper, Rates(cores=1)
    rates.note(task, 0.001)
    for job_id in (b"one", b"two", b"two"):
        rates.begin(job_id, task, 100)
    assert rates.ahead == pytest.approx(0.2)
    rates.end(b"two")
    rates.end(b"never begun")
    assert rates.ahead == pytest.approx(0.1)
