"""Two processes that are killed, stopped and restarted at any moment: I1, I2, I3, I8, D1, D2, E2.

``make soak-faults FAULTS=n SEED=n`` runs it longer, and with another seed.
"""

from __future__ import annotations

import os
import random
from pathlib import Path

import trio

from dapd.config import HelperMode
from tests.crash.load import BatchModeName, Load, assert_counted_once, open_house, until_decided
from tests.faults import short_leases
from tests.faults.random_faults import IMPATIENT, Faults
from tests.processes.daemons import QUICK, SECONDS, assert_calm

FAULTS = int(os.environ.get("FAULTS", "10"))
SEED = int(os.environ.get("SEED", "11"))
_SECONDS_PER_FAULT = 10
TASKS: tuple[tuple[HelperMode, BatchModeName, int], ...] = (
    ("async", "time-interval", 5),
    ("sync", "time-interval", 5),
    ("async", "leader-selected", 0),
)
"""With the number of late reports in each interval."""


async def test_i1_whatever_befalls_the_processes_every_result_is_exact(tmp_path: Path) -> None:
    """Every accepted report is in the result once, or counted as rejected, after SIGKILL, SIGSTOP
    for longer than leases and timeouts, and SIGTERM, of either Aggregator or both.

    Three tasks at once: an async Helper, a sync one, and batches that the Leader selects.
    """
    print(f"SEED={SEED} FAULTS={FAULTS}")  # noqa: T201 - to try it again
    chance = random.Random(SEED)
    with trio.fail_after(SECONDS + FAULTS * _SECONDS_PER_FAULT):
        async with open_house(tmp_path, settings=QUICK + IMPATIENT) as house:
            loads = [
                Load(house.new_task(mode, batches), chance, late=late)
                for mode, batches, late in TASKS
            ]
            for daemon in house.daemons:
                assert await daemon.start(short_leases.__file__), daemon.lines
            async with trio.open_nursery() as nursery:
                faults = Faults(house, chance, FAULTS, nursery)
                faults.moments.watch(house)
                for load in loads:
                    nursery.start_soon(load.run, faults.enough)
            await until_decided(house.leader)
            for daemon in house.daemons:
                assert await daemon.stop() == 0
            assert_counted_once(house, *loads)
            assert_calm(house.daemons)
