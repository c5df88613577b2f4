"""The back-off before sending stored bytes again (rules D4, E1)."""

from __future__ import annotations

LONGEST_RETRY_AFTER = 86_400.0
"""Seconds: a longer Retry-After is cut to this."""
_MOST_DOUBLINGS = 32


def backoff_ms(attempt: int, minimum: float, maximum: float, jitter: float) -> int:
    """Return the milliseconds to wait: ``minimum`` seconds, doubled by each attempt to ``maximum``.

    ``jitter`` in [0, 1) shortens the wait by up to a quarter, to spread retries out.
    """
    doubled = minimum * 2 ** min(max(attempt - 1, 0), _MOST_DOUBLINGS)
    return int(min(doubled, maximum) * (1 - jitter / 4) * 1000)
