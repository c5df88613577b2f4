"""The clocks: the machine's, which tests hand in, and the safe one, which expires things (D6).

Whatever makes data expire or a key change goes by the safe clock, so that a minute in 2036 expires
nothing. It follows the machine's clock, but rises by at most the time that has really elapsed. A
larger advance, a start after a long stop, or a machine that differs from its peers holds it where
it is, until the machine's clock is right again or an operator says that it is right.
"""

from __future__ import annotations

import statistics
import time
from dataclasses import dataclass
from typing import Protocol

AGREEMENT_MS = 5 * 60 * 1000
"""How far the machine's clock may be from what is expected of it, and from its peers' (D6)."""
_OFFSETS_KEPT_MS = 3600 * 1000


class Clock(Protocol):
    """What the daemon asks for the time."""

    def now(self) -> int:
        """Milliseconds since the Epoch, which an operator or NTP may set."""
        ...

    def elapsed(self) -> int:
        """Milliseconds since some moment, which nobody can set; goes on while suspended."""
        ...


class SystemClock:
    """The machine's clocks."""

    def now(self) -> int:
        return time.time_ns() // 1_000_000

    def elapsed(self) -> int:
        return time.clock_gettime_ns(time.CLOCK_BOOTTIME) // 1_000_000


@dataclass(frozen=True, slots=True)
class ClockState:
    """``held`` says why the safe clock stands; ``offsets`` are how far each peer's clock was ahead
    of this machine's when it last answered. All in milliseconds.
    """

    now: int
    safe: int
    held: str | None
    offsets: dict[str, int]


class SafeClock:
    """``stored`` is the safe time of the process before, ``None`` for a new database.

    ``longest_stop`` is in milliseconds: after a longer one an operator has to confirm the time.
    """

    def __init__(self, clock: Clock, stored: int | None, longest_stop: int) -> None:
        self._clock = clock
        self._offsets: dict[str, tuple[int, int]] = {}
        now = clock.now()
        self._safe = now if stored is None else max(stored, now)
        self._stopped_too_long = stored is not None and now - stored > longest_stop
        if stored is not None and self._stopped_too_long:
            self._safe = stored
        # Where the machine's clock should be: it goes on from here with the time that elapses.
        self._expected = now
        self._elapsed = clock.elapsed()

    def now(self) -> int:
        """The safe time, in milliseconds; it never falls but by ``accept``."""
        return self.look().safe

    def look(self) -> ClockState:
        """The safe time and what holds it, at this moment."""
        now, elapsed = self._clock.now(), self._clock.elapsed()
        expected = self._expected + elapsed - self._elapsed
        offsets = self._fresh_offsets(elapsed)
        held = self._obstacle(now, expected, offsets)
        if held is None:
            self._safe = max(self._safe, min(now, expected))
        return ClockState(now, self._safe, held, offsets)

    def note_peer(self, endpoint: str, date: int) -> None:
        """A peer has answered with this ``Date`` (ms)."""
        self._offsets[endpoint] = (date - self._clock.now(), self._clock.elapsed())

    def accept(self) -> None:
        """The machine's clock is right, says an operator, however far it is from the safe one."""
        self._safe = self._expected = self._clock.now()
        self._elapsed = self._clock.elapsed()
        self._stopped_too_long = False
        self._offsets.clear()

    def _fresh_offsets(self, elapsed: int) -> dict[str, int]:
        return {
            endpoint: offset
            for endpoint, (offset, at) in self._offsets.items()
            if elapsed - at <= _OFFSETS_KEPT_MS
        }

    def _obstacle(self, now: int, expected: int, offsets: dict[str, int]) -> str | None:
        if self._stopped_too_long:
            return f"the daemon did not run for {_spell(now - self._safe)}"
        if now > expected + AGREEMENT_MS:
            return f"the clock went ahead by {_spell(now - expected)}"
        if now < self._safe - AGREEMENT_MS:
            return f"the clock is {_spell(self._safe - now)} behind the time it showed before"
        ahead = int(statistics.median(offsets.values())) if offsets else 0
        if abs(ahead) > AGREEMENT_MS:
            side = "behind" if ahead > 0 else "ahead of"
            return f"the clock is {_spell(abs(ahead))} {side} those of the peers"
        return None


def _spell(milliseconds: int) -> str:
    seconds = milliseconds // 1000
    for unit, size in (("days", 86_400), ("hours", 3600), ("minutes", 60)):
        if seconds >= 2 * size:
            return f"{seconds / size:.1f} {unit}"
    return f"{seconds} seconds"
