"""Durations, counts and times in words, for messages and commands.

Pure. Left out: what only the page shows (``dapd.admin.page.formatting``).
"""

from __future__ import annotations

from datetime import UTC, datetime

_UNITS = (("day", 86_400), ("hour", 3600), ("minute", 60))


def duration(milliseconds: int) -> str:
    """Return a duration in one unit, to the nearest: the largest unit that it has two of, or
    exactly one, so that 90 seconds stay 90 seconds.
    """
    seconds = round(milliseconds / 1000)
    for unit, size in _UNITS:
        if milliseconds >= 2000 * size or seconds == size:
            return count(round(seconds / size), unit)
    return count(seconds, "second")


def count(number: int, noun: str, plural: str | None = None) -> str:
    """Return "1 task" or "2 tasks"; ``plural`` is for a noun that doesn't just take an "s"."""
    return f"{number} {noun if number == 1 else plural or noun + 's'}"


def moment(at: datetime) -> str:
    """Return a time to the minute, in UTC."""
    return f"{at.astimezone(UTC):%Y-%m-%d %H:%M} UTC"


def exact_moment(at: datetime) -> str:
    """Return a time to the second, in UTC."""
    return f"{at.astimezone(UTC):%Y-%m-%d %H:%M:%S} UTC"
