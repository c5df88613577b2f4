"""How long to wait before the stored bytes are sent again (rules D4, E1)."""

from __future__ import annotations

LONGEST_RETRY_AFTER = 86_400.0
"""Seconds: a longer Retry-After is cut to this."""
_MOST_DOUBLINGS = 32


def backoff_ms(attempt: int, minimum: float, maximum: float, jitter: float) -> int:
    """Exponential from ``minimum`` seconds at the first attempt, at most ``maximum``.

    ``jitter`` in [0, 1) takes up to a quarter off, so that jobs don't come back in step.
    """
    doubled = minimum * 2 ** min(max(attempt - 1, 0), _MOST_DOUBLINGS)
    return int(min(doubled, maximum) * (1 - jitter / 4) * 1000)
