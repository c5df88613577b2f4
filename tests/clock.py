"""The time of tests: a clock that only tests move, and the moment at which it starts."""

from __future__ import annotations

from collections.abc import Callable

from dapd.protocol.task import Instant

PRECISION = 3600
"""The time precision of tests' tasks, in seconds."""
NOW = 1_800_000_000_000
"""When tests start, in milliseconds since the Epoch; the start of a time precision."""
TIME = NOW // 1000 // PRECISION
"""``NOW`` as a report's time."""


class ManualClock:
    """A machine's two clocks. ``advance`` lets time pass; ``jump`` sets the clock, as NTP may.

    In between both stand still, or follow ``ticks``, which returns seconds.
    """

    def __init__(self, now: int = NOW, *, ticks: Callable[[], float] = lambda: 0.0) -> None:
        self._ticks = ticks
        self._started = ticks()
        self._advanced = 0
        self._epoch = now

    def now(self) -> int:
        """Milliseconds since the Epoch."""
        return self._epoch + self.elapsed()

    def elapsed(self) -> int:
        """Milliseconds since the clock was made, whatever it was set to."""
        return self._advanced + int((self._ticks() - self._started) * 1000)

    def instant(self) -> Instant:
        """Now, by a safe clock that agrees."""
        return Instant(self.now(), self.now())

    def advance(self, seconds: float) -> None:
        self._advanced += round(seconds * 1000)

    def jump(self, seconds: float) -> None:
        """Set the clock ahead, or back."""
        self._epoch += round(seconds * 1000)
