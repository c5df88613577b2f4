"""The clocks: the machine's, which tests hand in, and the safe one, which expires things (D6).

Whatever makes data expire or a key change goes by the safe clock, so that a minute in 2036 expires
nothing. It follows the machine's clock, but rises by at most the time that has really elapsed. A
larger advance, a start after a long stop, or a machine that differs from its peers holds it where
it is, until the machine's clock is right again or an operator says that it is right.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from dapd.datastore.safe_clock import StoredClock
from dapd.wording import duration

AGREEMENT_MS = 5 * 60 * 1000
"""How far the machine's clock may be from what is expected of it, and from its peers' (D6)."""
_PROMPT_MS = AGREEMENT_MS // 2
"""How long an answer may take for its ``Date`` to count: its age passes for a difference (D6)."""
_STEPS = 1 / 1000
"""What share of the time elapsed small steps may add up to: NTP's steps of years are no jump."""


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
    """``held`` says why the safe clock stands; ``offsets`` are how far each peer's clock is ahead
    of this machine's, by its last answer. All in milliseconds. ``stored`` is for the next start.
    """

    now: int
    safe: int
    held: str | None
    offsets: dict[str, int]
    stored: StoredClock


class SafeClock:
    """``stored`` is ``None`` for a new database.

    ``longest_stop`` is in milliseconds: after a longer one an operator has to confirm the time.
    """

    def __init__(self, clock: Clock, stored: StoredClock | None, longest_stop: int) -> None:
        self._clock = clock
        self._peers: dict[str, tuple[int, int]] = {}
        self._ignored: set[str] = set()
        self._elapsed = clock.elapsed()
        self._safe = clock.now() if stored is None else stored.safe
        # Both go on with the time that elapses: what the machine's clock should show, and the
        # highest that the safe one may.
        self._expected: float = self._safe
        self._ceiling = self._safe
        self._doubted = stored is not None and stored.doubted
        self._believed = stored is None
        self._lead = AGREEMENT_MS if self._believed or self._doubted else longest_stop

    def now(self) -> int:
        """The safe time, in milliseconds; it never falls but by ``accept``."""
        return self.look().safe

    def look(self) -> ClockState:
        """The safe time and what holds it, at this moment."""
        now, elapsed = self._clock.now(), self._clock.elapsed()
        passed = elapsed - self._elapsed
        self._elapsed = elapsed
        self._expected += passed
        self._ceiling += passed
        offsets = {origin: date + elapsed - at - now for origin, (date, at) in self._peers.items()}
        behind = now < self._safe - AGREEMENT_MS
        held = self._behind(now) if behind else self._ahead(now) or self._disagreement(offsets)
        if held is None:
            self._follow(now, passed)
        elif not behind:
            self._doubted = True
        return ClockState(now, self._safe, held, offsets, StoredClock(self._safe, self._doubted))

    def ask_peer(self) -> Callable[[str, int], None]:
        """A request to a peer begins; tell the result the origin and ``Date`` (ms) of the answer.

        A slow answer tells no time: this machine may have slept while the ``Date`` grew old.
        """
        asked = self._clock.elapsed()

        def answered(origin: str, date: int) -> None:
            at = self._clock.elapsed()
            if at - asked > _PROMPT_MS:
                return
            self._peers[origin] = (date, at)
            if abs(date - self._clock.now()) <= AGREEMENT_MS:
                self._ignored.discard(origin)

        return answered

    def accept(self) -> None:
        """The machine's clock is right, says an operator, however far it is from the safe one.

        Peers that differ are not listened to until they agree again.
        """
        offsets = self.look().offsets
        self._ignored |= {origin for origin, ms in offsets.items() if abs(ms) > AGREEMENT_MS}
        self._safe = self._clock.now()
        self._believe(self._safe)

    def _follow(self, now: int, passed: int) -> None:
        """The machine's clock is as it should be."""
        if not self._believed:  # the first time since the start: what has passed can't be measured
            self._believe(now)
        self._doubted = False
        self._safe = max(self._safe, min(now, self._ceiling))
        self._expected = max(self._expected, min(now, self._expected + passed * _STEPS))

    def _believe(self, now: int) -> None:
        self._expected = self._ceiling = now
        self._believed, self._doubted = True, False
        self._lead = AGREEMENT_MS

    def _behind(self, now: int) -> str:
        return f"the clock is {duration(self._safe - now)} behind the time it showed before"

    def _ahead(self, now: int) -> str | None:
        ahead = now - int(self._expected)
        if ahead <= self._lead:
            return None
        if self._believed:
            return f"the clock went ahead by {duration(ahead)}"
        if self._lead == AGREEMENT_MS:
            return "the clock was in doubt when the daemon stopped"
        return f"the daemon did not run for {duration(ahead)}, if the clock is right"

    def _disagreement(self, offsets: dict[str, int]) -> str | None:
        """Most of the peers have another time."""
        asked = [ms for origin, ms in offsets.items() if origin not in self._ignored]
        differing = sorted((ms for ms in asked if abs(ms) > AGREEMENT_MS), key=abs)
        if 2 * len(differing) <= len(asked):
            return None
        ahead = differing[len(differing) // 2]
        side = "behind" if ahead > 0 else "ahead of"
        return f"the clock is {duration(abs(ahead))} {side} those of the peers"
