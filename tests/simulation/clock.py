"""The time of the simulated world, and each machine's idea of it."""

from __future__ import annotations

from dataclasses import dataclass

import trio

from tests.clock import NOW


@dataclass
class WorldClock:
    """The true time, in seconds: Trio's, and what outages have skipped."""

    skipped: float = 0.0

    def now(self) -> float:
        return NOW / 1000 + trio.current_time() + self.skipped


@dataclass
class MachineClock:
    """A machine's clock, which is wrong by ``offset`` seconds."""

    world: WorldClock
    offset: float = 0.0
    set_at: float = 0.0

    def set(self, offset: float) -> None:
        self.offset, self.set_at = offset, trio.current_time()

    def now(self) -> int:
        return round(1000 * (self.world.now() + self.offset))

    def elapsed(self) -> int:
        return round(1000 * self.world.now()) - NOW
