"""A Helper that accepts and never answers, or answers a byte at a time: E1, I3, I4, A1.

``make soak`` has real time limits, and hangs for minutes.
"""

from __future__ import annotations

import os
import random
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import pytest
import trio

from tests.crash.load import House, Load, assert_counted_once, open_house
from tests.processes.daemons import QUICK, SECONDS, DaemonProcess, Wire, assert_calm
from tests.raw_http import Request
from tests.scripted_proxy import Action, Drip, Hold, Pass, ScriptedProxy

LONG = "LONG" in os.environ
SETTINGS = QUICK if LONG else QUICK + "request_timeout = 0.3\n"
PAUSE = 1.0 if LONG else 0.05
TIMES = 2
"""So often the Leader gives up waiting and sends the same again."""
Way = Literal["silent", "byte by byte"]


@dataclass
class BehindProxy(Wire):
    """The way to a Helper whose address is the proxy's."""

    proxy: ScriptedProxy = field(default_factory=lambda: ScriptedProxy(0))

    async def serve(self, nursery: trio.Nursery) -> None:
        await super().serve(nursery)
        self.proxy.target = self.port
        await self.proxy.serve(nursery)

    @property
    def url(self) -> str:
        return self.proxy.url


@dataclass
class Hanging:
    """Decides which requests hang: those to ``resource``."""

    way: Way
    resource: str | None = None
    requests: Counter[str] = field(default_factory=Counter)
    _released: trio.Event = field(default_factory=trio.Event)

    def hang(self, resource: str | None) -> None:
        """From now on this resource; what is held goes on."""
        self._released.set()
        self._released = trio.Event()
        self.resource = resource

    def __call__(self, request: Request) -> Action:
        if self.resource is None or f"/{self.resource}" not in request.target:
            return Pass()
        self.requests[self.resource] += 1
        return Hold(self._released) if self.way == "silent" else Drip(PAUSE)


@pytest.mark.parametrize("way", ["silent", "byte by byte"])
async def test_e1_a_helper_that_hangs_stops_no_other_task_and_loses_nothing(
    tmp_path: Path, way: Way
) -> None:
    """While jobs, then a collection of its task run into one timeout after the other, another
    Helper's task is uploaded to and collected; later the hung one is exact too.
    """
    with trio.fail_after(10 * SECONDS if LONG else SECONDS):
        async with (
            open_house(tmp_path, settings=SETTINGS) as house,
            trio.open_nursery() as nursery,
        ):
            wire = BehindProxy()
            await wire.serve(nursery)
            other = DaemonProcess(tmp_path / "hung", nursery, wire)
            other.make(SETTINGS)
            hung_house = House(house.leader, other)
            hung = Load(hung_house.new_task("sync", "time-interval"), random.Random(1))
            files = house.new_task("sync", "time-interval")
            for daemon in (*house.daemons, other):
                assert await daemon.start(), daemon.lines
            hanging = wire.proxy.script = Hanging(way)
            served = []
            async with trio.open_nursery() as clients:
                for phase, resource in enumerate(("aggregation_jobs", "aggregate_shares")):
                    hanging.hang(resource)
                    if phase == 0:
                        clients.start_soon(hung.run, lambda: True)
                    load = Load(files, random.Random(2), requests=2, earlier=10_000 * phase)
                    await load.run(lambda at=resource: hanging.requests[at] > TIMES)  # type: ignore[misc]
                    assert hung.collected == (0, 0)
                    served.append(load)
                hanging.hang(None)
            for daemon in (*house.daemons, other):
                assert await daemon.stop() == 0
            assert_calm([*house.daemons, other])
            assert_counted_once(house, *served)
            assert_counted_once(hung_house, hung)
            nursery.cancel_scope.cancel()
