"""The wall clock, in milliseconds, as something that tests can hand in."""

from __future__ import annotations

import time
from typing import Protocol


class Clock(Protocol):
    """What the daemon asks for the time."""

    def now(self) -> int:
        """Milliseconds since the Epoch."""
        ...


class SystemClock:
    """The machine's clock."""

    def now(self) -> int:
        return time.time_ns() // 1_000_000
