"""How numbers, times and foreign text stand on the page. Pure."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta

from markupsafe import Markup

from dapd.errors import printable
from dapd.protocol.waiting import spell

_CODE = re.compile(r"`([^`]*)`")


def shown(value: object) -> object:
    """What the template shows: text is made printable, unless it is markup of ours."""
    return printable(value) if isinstance(value, str) and not isinstance(value, Markup) else value


def coded(text: str) -> Markup:
    """A sentence in which what stands in backticks is a command."""
    parts = _CODE.split(printable(text))
    return Markup().join(
        Markup("<code>{}</code>").format(part) if place % 2 else part
        for place, part in enumerate(parts)
    )


def number(value: float) -> str:
    """A count, with its thousands apart."""
    return f"{value:,.0f}"


def rate(per_second: float) -> str:
    """How often, in the smallest unit of time in which that is once."""
    if not per_second:
        return "0"
    for unit, seconds in (("s", 1), ("min", 60)):
        if per_second * seconds >= 1:
            return f"{_two_digits(per_second * seconds)}/{unit}"
    return f"{_two_digits(per_second * 3600)}/h"


def spelled(seconds: float) -> str:
    """A duration."""
    return "a moment" if seconds < 2 else spell(int(1000 * seconds))


def milliseconds(seconds: float) -> str:
    """A short time."""
    return f"{_two_digits(1000 * seconds)} ms"


def size(octets: int) -> str:
    """Of a file or a disk."""
    for unit, shift in (("TiB", 40), ("GiB", 30), ("MiB", 20)):
        if octets >= 1 << shift:
            return f"{_two_digits(octets / (1 << shift))} {unit}"
    return f"{octets / 1024:,.0f} KiB"


def ago(at: datetime, now: datetime) -> str:
    """How far a time is from now."""
    ahead = at - now
    duration = spelled(abs(ahead).total_seconds())
    return f"in {duration}" if ahead > timedelta() else f"{duration} ago"


def exactly(at: datetime) -> str:
    """A time to the second."""
    return f"{at.astimezone(UTC):%Y-%m-%d %H:%M:%S} UTC"


def _two_digits(value: float) -> str:
    if value >= 9.95 or value == 0:
        return f"{value:,.0f}"
    return f"{value:.1f}" if value >= 0.95 else f"{value:.2g}"
