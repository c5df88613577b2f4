"""Faults of processes, chosen by a seed: killed, stopped for a while, or told to stop."""

from __future__ import annotations

import random
import signal
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal, get_args

import trio

from tests.crash.load import House, Moments
from tests.crash.steps import OFTEN
from tests.faults import short_leases
from tests.processes.daemons import DaemonProcess

Kind = Literal["killed", "stopped", "terminated", "killed while it ends", "killed as it starts"]
KINDS: Sequence[Kind] = get_args(Kind)
LONGEST_STOP = 3 * short_leases.LEASE_MS / 1000
"""Seconds: longer than leases, and than the peer's patience with ``IMPATIENT``."""
IMPATIENT = "request_timeout = 0.5\n\n[helper]\npoll_hold = 0.1\n\n[shutdown]\ngrace = 1\n" + OFTEN
"""To follow ``QUICK``, whose last table is ``[leader]``."""
_LONGEST_START = 0.3


@dataclass
class Faults:
    """Does something to one of the two, or to both, at random moments, and sets it right again."""

    house: House
    chance: random.Random
    most: int
    nursery: trio.Nursery
    done: list[dict[str, Kind]] = field(default_factory=list)
    """What was done to whom, at the same time."""

    def __post_init__(self) -> None:
        self.moments = Moments(self.chance, self._choose, self.enough)

    def enough(self) -> bool:
        return len(self.done) >= self.most

    def _choose(self) -> None:
        leader, helper = self.house.daemons
        victims = self.chance.choice([[leader], [helper], [leader, helper]])
        fault = [(victim, self.chance.choice(KINDS)) for victim in victims]
        self.done.append({victim.directory.name: kind for victim, kind in fault})
        print(f"fault {len(self.done)}: {self.done[-1]}")  # noqa: T201 - to try it again
        self.nursery.start_soon(self._strike, fault)

    async def _strike(self, fault: Sequence[tuple[DaemonProcess, Kind]]) -> None:
        async with trio.open_nursery() as nursery:
            for victim, kind in fault:
                nursery.start_soon(self._strike_one, victim, kind)
        self.moments.arm()

    async def _strike_one(self, victim: DaemonProcess, kind: Kind) -> None:
        assert victim.process is not None
        match kind:
            case "killed":
                await victim.kill()
            case "stopped":
                victim.process.send_signal(signal.SIGSTOP)
                await trio.sleep(self.chance.uniform(0, LONGEST_STOP))
                victim.process.send_signal(signal.SIGCONT)
                return
            case "terminated":
                assert await victim.stop() == 0
            case "killed while it ends":
                times = sum(line["event"] == "stopping" for line in victim.records())
                victim.process.terminate()
                await victim.logged("stopping", times + 1)
                await victim.kill()
            case "killed as it starts":
                await victim.kill()
                await self._kill_as_it_starts(victim)
        assert await victim.start(short_leases.__file__), victim.lines[-1]

    async def _kill_as_it_starts(self, victim: DaemonProcess) -> None:
        before = victim.process
        async with trio.open_nursery() as nursery:
            nursery.start_soon(victim.start, short_leases.__file__)
            while victim.process is before:
                await trio.lowlevel.checkpoint()
            await trio.sleep(self.chance.uniform(0, _LONGEST_START))
            await victim.kill()
