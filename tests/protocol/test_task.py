"""A task's bounds at a moment that two clocks show."""

from __future__ import annotations

import pytest

from dapd.protocol.task import Instant
from tests.clock import NOW, PRECISION, TIME
from tests.task_pair import task_pair

HOUR = 3600 * 1000


@pytest.mark.parametrize(
    ("at", "latest"),
    [
        (Instant(NOW, NOW), NOW),
        (Instant(NOW, NOW, leeway=5), NOW + 5),
        (Instant(NOW, NOW + 7, leeway=5), NOW + 12),  # set back a little: nothing gets too early
        (Instant(NOW + HOUR, NOW, held=True), NOW),  # a clock in doubt makes nothing acceptable
        (Instant(NOW - HOUR, NOW, leeway=5, held=True), NOW + 5),
    ],
)
def test_b2_too_early_goes_by_the_later_clock_and_by_the_safe_one_while_the_other_is_in_doubt(
    at: Instant, latest: int
) -> None:
    """What a wrong clock lets in would wait until its time, years if the clock was years ahead."""
    assert at.latest == latest
    task = task_pair().leader
    assert task.too_early_after_at(at) == task.time_of(latest)


def test_times_are_of_the_tasks_precision() -> None:
    """A task counts periods, not seconds."""
    assert task_pair().leader.time_of(NOW) == NOW // (1000 * PRECISION) == TIME
