"""SIGKILL at any moment changes nothing: I1, I2, I3, D1, D2, D7."""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from pathlib import Path

import trio

from dapd.config import HelperMode
from tests.crash.load import (
    BatchModeName,
    House,
    Load,
    Moments,
    assert_counted_once,
    open_house,
)
from tests.processes.daemons import SECONDS, DaemonProcess, assert_calm, start

SEED = 18
KILLS = 20
TASKS: tuple[tuple[HelperMode, BatchModeName], ...] = (
    ("async", "time-interval"),
    ("sync", "time-interval"),
    ("async", "leader-selected"),
)


@dataclass
class Killer:
    """Kills one of the two at random moments, and starts it again."""

    house: House
    chance: random.Random
    nursery: trio.Nursery
    kills: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.moments = Moments(self.chance, self._kill, self.enough)

    def enough(self) -> bool:
        return len(self.kills) >= KILLS

    def _kill(self) -> None:
        victim = self.chance.choice(self.house.daemons)
        self.kills.append(victim.directory.name)
        assert victim.process is not None
        victim.process.kill()
        self.nursery.start_soon(self._revive, victim)

    async def _revive(self, victim: DaemonProcess) -> None:
        await victim.ended()
        assert await victim.start(), victim.lines[-1]
        self.moments.arm()


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
            killer.moments.watch(house)
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
