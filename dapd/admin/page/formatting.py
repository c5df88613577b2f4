"""Format numbers, times and foreign text for the page. Pure."""

from __future__ import annotations

import re
from datetime import datetime, timedelta

from markupsafe import Markup

from dapd.errors import printable
from dapd.wording import duration

_CODE = re.compile(r"`([^`]*)`")


def shown(value: object) -> object:
    """Return a template's value, with text made printable unless it is our own markup."""
    return printable(value) if isinstance(value, str) and not isinstance(value, Markup) else value


def coded(text: str) -> Markup:
    """Return a sentence with commands, which are in backticks, marked up."""
    parts = _CODE.split(printable(text))
    return Markup().join(
        Markup("<code>{}</code>").format(part) if place % 2 else part
        for place, part in enumerate(parts)
    )


def number(value: float) -> str:
    """Return a number with thousands separators."""
    return f"{value:,.0f}"


def rate(per_second: float) -> str:
    """Return a rate in the shortest unit of time in which it is at least one."""
    if not per_second:
        return "0"
    for unit, seconds in (("s", 1), ("min", 60)):
        if per_second * seconds >= 1:
            return f"{_two_digits(per_second * seconds)}/{unit}"
    return f"{_two_digits(per_second * 3600)}/h"


def spelled(seconds: float) -> str:
    """Return a duration in words."""
    return "a moment" if seconds < 2 else duration(int(1000 * seconds))


def milliseconds(seconds: float) -> str:
    """Return a short time in milliseconds."""
    return f"{_two_digits(1000 * seconds)} ms"


def size(octets: int) -> str:
    """Return the size of a file or disk."""
    for unit, shift in (("TiB", 40), ("GiB", 30), ("MiB", 20)):
        if octets >= 1 << shift:
            return f"{_two_digits(octets / (1 << shift))} {unit}"
    return f"{octets / 1024:,.0f} KiB"


def ago(at: datetime, now: datetime) -> str:
    """Return how far a time is from now."""
    ahead = at - now
    far = spelled(abs(ahead).total_seconds())
    return f"in {far}" if ahead > timedelta() else f"{far} ago"


def _two_digits(value: float) -> str:
    if value >= 9.95 or value == 0:
        return f"{value:,.0f}"
    return f"{value:.1f}" if value >= 0.95 else f"{value:.2g}"
