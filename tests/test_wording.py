"""Durations, counts and times in words."""

from __future__ import annotations

from datetime import datetime, timedelta, timezone

import pytest

from dapd.wording import count, duration, exact_moment, moment


@pytest.mark.parametrize(
    ("milliseconds", "said"),
    [
        (0, "0 seconds"),
        (499, "0 seconds"),
        (1000, "1 second"),
        (1400, "1 second"),
        (2000, "2 seconds"),
        (59_000, "59 seconds"),
        (60_000, "1 minute"),
        (60_400, "1 minute"),
        (61_000, "61 seconds"),
        (90_000, "90 seconds"),
        (119_000, "119 seconds"),
        (120_000, "2 minutes"),
        (149_000, "2 minutes"),
        (151_000, "3 minutes"),
        (3_600_000, "1 hour"),
        (3_660_000, "61 minutes"),
        (2 * 3_600_000 - 1000, "120 minutes"),
        (2 * 3_600_000, "2 hours"),
        (86_400_000, "1 day"),
        (2 * 86_400_000 - 1, "48 hours"),
        (2 * 86_400_000, "2 days"),
        (7 * 86_400_000 - 50, "7 days"),
    ],
)
def test_a_duration_is_in_one_unit(milliseconds: int, said: str) -> None:
    """To the nearest: a week that began just now is a week."""
    assert duration(milliseconds) == said


def test_a_count_has_its_noun_in_the_right_number() -> None:
    assert [count(number, "task") for number in (0, 1, 2)] == ["0 tasks", "1 task", "2 tasks"]
    assert [count(number, "batch", "batches") for number in (1, 2)] == ["1 batch", "2 batches"]


def test_a_time_is_in_utc_whatever_its_zone() -> None:
    at = datetime(2026, 1, 2, 1, 30, 59, tzinfo=timezone(timedelta(hours=2)))
    assert moment(at) == "2026-01-01 23:30 UTC"
    assert exact_moment(at) == "2026-01-01 23:30:59 UTC"
