"""The clocks: the machine's, and the safe clock, by which data expires and keys change (D6).

The safe clock makes a wrong machine's clock harmless: a minute in 2036 expires nothing. It follows
the machine's clock, but rises by at most the time that has really elapsed. It is *held* where it is
after a larger advance, after a long stop, or while the machine's clock differs from its peers',
until the machine's clock is right again or an operator confirms it.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from dapd.datastore.safe_clock import StoredClock
from dapd.wording import duration

AGREEMENT_MS = 5 * 60 * 1000
"""How far (ms) the machine's clock may be from the expected time, and from its peers' (D6)."""
_PROMPT_MS = AGREEMENT_MS // 2
"""A peer's answer that takes longer (ms) tells no time: its ``Date`` may be old by then (D6)."""
_DRIFT = 1 / 1000
"""The share of the elapsed time by which the expected time may move: the small steps of NTP over
years don't add up to a jump.
"""


class Clock(Protocol):
    """The machine's clock, as the daemon and its tests see it."""

    def now(self) -> int:
        """Return the milliseconds since the Epoch; an operator or NTP may set this clock."""
        ...

    def elapsed(self) -> int:
        """Return milliseconds that nothing can set; they go on while the machine is suspended."""
        ...


class SystemClock:
    """The real clocks of this machine."""

    def now(self) -> int:
        return time.time_ns() // 1_000_000

    def elapsed(self) -> int:
        return time.clock_gettime_ns(time.CLOCK_BOOTTIME) // 1_000_000


@dataclass(frozen=True, slots=True)
class ClockState:
    """Both clocks at one moment, in milliseconds.

    ``held`` says why the safe clock is held; it is ``None`` if it follows. ``offsets`` says how far
    each peer's clock is ahead of this machine's, by its last response. ``stored`` is for the next
    start.
    """

    now: int
    safe: int
    held: str | None
    offsets: dict[str, int]
    stored: StoredClock


class SafeClock:
    """The clock by which data expires and keys change (D6).

    ``stored`` is ``None`` for a new database. After a stop longer than ``longest_stop`` (ms) an
    operator has to confirm the time.
    """

    def __init__(self, clock: Clock, stored: StoredClock | None, longest_stop: int) -> None:
        self._clock = clock
        self._peers: dict[str, tuple[int, int]] = {}
        self._ignored: set[str] = set()
        self._elapsed = clock.elapsed()
        self._safe = clock.now() if stored is None else stored.safe
        # What the machine's clock should show, and the most that the safe clock may: both advance
        # with the elapsed time.
        self._expected: float = self._safe
        self._ceiling = self._safe
        self._doubted = stored is not None and stored.doubted
        # Until the machine's clock was first right since the start, we don't know how long the
        # daemon was stopped.
        self._confirmed = stored is None
        self._longest_lead = AGREEMENT_MS if self._confirmed or self._doubted else longest_stop

    def now(self) -> int:
        """Return the safe time, in milliseconds; only ``accept`` ever lowers it."""
        return self.look().safe

    def look(self) -> ClockState:
        """Advance the safe clock unless something holds it. Return both clocks."""
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
        """Note that a request to a peer begins. Return a function to call with the origin and the
        ``Date`` (ms) of the answer.

        A slow answer doesn't count: this machine may have slept while its ``Date`` grew old.
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
        """Set the safe clock to the machine's, which an operator confirms to be right.

        Ignore the peers that differ until they agree again.
        """
        offsets = self.look().offsets
        self._ignored |= {origin for origin, ms in offsets.items() if abs(ms) > AGREEMENT_MS}
        self._safe = self._clock.now()
        self._confirm(self._safe)

    def _follow(self, now: int, passed: int) -> None:
        """Follow the machine's clock, which is right."""
        if not self._confirmed:
            self._confirm(now)
        self._doubted = False
        self._safe = max(self._safe, min(now, self._ceiling))
        self._expected = max(self._expected, min(now, self._expected + passed * _DRIFT))

    def _confirm(self, now: int) -> None:
        """Take the machine's time as right, whatever the elapsed time says."""
        self._expected = self._ceiling = now
        self._confirmed, self._doubted = True, False
        self._longest_lead = AGREEMENT_MS

    def _behind(self, now: int) -> str:
        return f"the clock is {duration(self._safe - now)} behind the time it showed before"

    def _ahead(self, now: int) -> str | None:
        ahead = now - int(self._expected)
        if ahead <= self._longest_lead:
            return None
        if self._confirmed:
            return f"the clock went ahead by {duration(ahead)}"
        if self._longest_lead == AGREEMENT_MS:
            return "the clock was in doubt when the daemon stopped"
        return f"the daemon did not run for {duration(ahead)}, if the clock is right"

    def _disagreement(self, offsets: dict[str, int]) -> str | None:
        """Return the hold if most of the peers differ from the machine's clock."""
        asked = [ms for origin, ms in offsets.items() if origin not in self._ignored]
        differing = sorted((ms for ms in asked if abs(ms) > AGREEMENT_MS), key=abs)
        if 2 * len(differing) <= len(asked):
            return None
        ahead = differing[len(differing) // 2]
        side = "behind" if ahead > 0 else "ahead of"
        return f"the clock is {duration(abs(ahead))} {side} those of the peers"
