"""SIGKILL at any moment changes nothing: I1, I2, I3, D1, D2, D7."""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from pathlib import Path

import trio

from dapd.config import HelperMode
from tests.crash.load import BatchModeName, House, Load, assert_counted_once, open_house
from tests.processes.daemons import SECONDS, DaemonProcess, assert_calm, start

SEED = 18
KILLS = 20
_MOST_EVENTS_BETWEEN = 100
TASKS: tuple[tuple[HelperMode, BatchModeName], ...] = (
    ("async", "time-interval"),
    ("sync", "time-interval"),
    ("async", "leader-selected"),
)


@dataclass
class Killer:
    """Kills one of the two whenever so many pieces of bytes have passed, and starts it again."""

    house: House
    chance: random.Random
    nursery: trio.Nursery
    kills: list[str] = field(default_factory=list)
    _left: int = 0

    def arm(self) -> None:
        self._left = self.chance.randint(1, _MOST_EVENTS_BETWEEN)

    async def passing(self) -> None:
        """One event: a piece of a request or an answer is about to pass, or has passed."""
        self._left -= 1
        if self._left == 0 and not self.enough():
            victim = self.chance.choice(self.house.daemons)
            self.kills.append(victim.directory.name)
            assert victim.process is not None
            victim.process.kill()
            self.nursery.start_soon(self._revive, victim)

    def enough(self) -> bool:
        return len(self.kills) >= KILLS

    async def _revive(self, victim: DaemonProcess) -> None:
        await victim.ended()
        assert await victim.start(), victim.lines[-1]
        self.arm()


async def test_i1_killed_twenty_times_under_load_every_result_is_exact(tmp_path: Path) -> None:
    """Every accepted report is in the result once, whichever Aggregator dies, whenever.

    Three tasks at once: an async Helper, a sync one, and batches that the Leader selects.
    """
    chance = random.Random(SEED)
    with trio.fail_after(SECONDS):
        async with open_house(tmp_path) as house, trio.open_nursery() as nursery:
            loads = [Load(house.new_task(mode, batches), chance) for mode, batches in TASKS]
            await start(*house.daemons)
            killer = Killer(house, chance, nursery)
            for daemon in house.daemons:
                daemon.wire.passing = killer.passing
            killer.arm()
            try:
                async with trio.open_nursery() as clients:
                    for load in loads:
                        clients.start_soon(load.run, killer.enough)
            except BaseException:
                print(f"seed {SEED}, killed: {killer.kills}")  # noqa: T201 - to try it again
                raise
            for daemon in house.daemons:
                assert await daemon.stop() == 0
            assert_counted_once(house, *loads)
            assert_calm(house.daemons)
