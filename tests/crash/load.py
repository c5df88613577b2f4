"""Clients and a Collector that keep on through crashes, and know what the result must be."""

from __future__ import annotations

import random
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import trio

from dapd.client import Client
from dapd.collector import Collector, Query
from dapd.config import HelperMode
from dapd.http import Patience
from dapd.messages.common import BatchMode
from dapd.taskfile import TaskDraft, TaskFiles, new_task, parse_vdaf_spec
from tests.processes.daemons import QUICK, DaemonProcess, Wire

BatchModeName = Literal["time-interval", "leader-selected"]
PRECISION = 60
_MOST_EVENTS_BETWEEN = 100
STUBBORN = Patience(attempts=100_000, minimum=0.02, maximum=0.1)
"""A request of unknown outcome is sent again, byte for byte, until the outcome is known."""


@dataclass
class Moments:
    """Calls ``strike`` once after each ``arm``, when a random number of pieces of bytes of the
    daemons' requests and answers have passed; no more once it is ``enough``.
    """

    chance: random.Random
    strike: Callable[[], None]
    enough: Callable[[], bool]
    _left: int = 0

    def arm(self) -> None:
        self._left = self.chance.randint(1, _MOST_EVENTS_BETWEEN)

    async def passing(self) -> None:
        """One event: a piece of a request or an answer is about to pass, or has passed."""
        self._left -= 1
        if self._left == 0 and not self.enough():
            self.strike()

    def watch(self, house: House) -> None:
        """Count what passes the wires of both daemons from now on."""
        for daemon in house.daemons:
            daemon.wire.passing = self.passing
        self.arm()


@dataclass
class House:
    """A Leader and a Helper as processes, with the wires that lead to them."""

    leader: DaemonProcess
    helper: DaemonProcess

    @property
    def daemons(self) -> tuple[DaemonProcess, DaemonProcess]:
        return self.leader, self.helper

    def new_task(
        self, mode: HelperMode, batch_mode: BatchModeName, time_precision: int = PRECISION
    ) -> TaskFiles:
        """A Sum that both have; before they run."""
        draft = TaskDraft(
            vdaf=parse_vdaf_spec("sum:max_measurement=1000"),
            leader_aggregator_endpoint=self.leader.wire.url,
            helper_aggregator_endpoint=self.helper.wire.url,
            batch_mode=batch_mode,
            min_batch_size=1,
            time_precision=time_precision,
        )
        files = new_task(draft, allow_tiny_batches=True)
        self.leader.add(files.leader, batch_target_size=8)
        self.helper.add(files.helper, mode)
        return files


@asynccontextmanager
async def open_house(
    directory: Path, *, settings: str = QUICK, helper_server: str = ""
) -> AsyncIterator[House]:
    """The files of both, and their wires; neither is started.

    ``helper_server`` are more lines of the Helper's ``[server]``.
    """
    async with trio.open_nursery() as nursery:
        wires = Wire(), Wire()
        for wire in wires:
            await wire.serve(nursery)
        house = House(
            DaemonProcess(directory / "leader", nursery, wires[0]),
            DaemonProcess(directory / "helper", nursery, wires[1]),
        )
        house.leader.make(settings)
        house.helper.make(settings, helper_server)
        yield house
        nursery.cancel_scope.cancel()


@dataclass
class Load:
    """Rounds of uploads to one task, each collected while the next one is uploaded.

    A round of a time-interval task has an interval of its own, whose result must be the round's;
    of a leader-selected one, what all batches hold in sum must be what all uploads did.

    ``late`` reports of each interval are uploaded while it is collected: each is in the result, or
    refused, or counted as rejected. Their values are powers of two, so the result tells which are.
    """

    files: TaskFiles
    chance: random.Random
    requests: int = 4
    reports: int = 5
    earlier: int = 0
    """How many time precisions its intervals lie back."""
    late: int = 0
    uploaded: dict[int, list[int]] = field(default_factory=dict)
    collected: tuple[int, int] = (0, 0)

    @property
    def accepted(self) -> tuple[int, int]:
        """How many reports were accepted, and their sum; late ones only if a result has them."""
        values = [value for values in self.uploaded.values() for value in values]
        return len(values), sum(values)

    async def run(self, enough: Callable[[], bool]) -> None:
        """Rounds until it is enough; then all that was uploaded is collected."""
        before = int(time.time()) // PRECISION * PRECISION - (1 + self.earlier) * PRECISION
        number = 0
        async with (
            Client(self.files.client, patience=STUBBORN) as client,
            Collector(self.files.collector, patience=STUBBORN) as collector,
        ):
            while number == 0 or not enough():
                interval = before - number * PRECISION
                async with trio.open_nursery() as nursery:
                    if number:
                        nursery.start_soon(self._collect, client, collector, interval + PRECISION)
                    for _ in range(self.requests):
                        nursery.start_soon(self._upload, client, interval)
                number += 1
            await self._collect(client, collector, interval)
        assert self.collected == self.accepted

    async def _upload(self, client: Client, interval: int) -> None:
        values = [self.chance.randrange(1000) for _ in range(self.reports)]
        result = await client.upload(values, time=interval)
        assert not result.rejected
        self.uploaded.setdefault(interval, []).extend(values)

    async def _collect(self, client: Client, collector: Collector, interval: int) -> None:
        if self.files.client.configuration.batch_mode is BatchMode.LEADER_SELECTED:
            wanted = self.accepted[0]
            while self.collected[0] < wanted:
                await self._collect_one(collector, Query.next_batch())
            return
        results: list[tuple[int, int]] = []

        async def collect() -> None:
            results.append(await self._collect_one(collector, Query.interval(interval, PRECISION)))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(collect)
            refused = await self._upload_late(client, interval)
        [(reports, total)] = results
        on_time = self.uploaded[interval]
        late = total - sum(on_time)
        assert 0 <= late < 1 << self.late
        assert late.bit_count() == reports - len(on_time)
        assert late & refused == 0
        on_time.extend(1 << bit for bit in range(self.late) if late >> bit & 1)

    async def _upload_late(self, client: Client, interval: int) -> int:
        """The sum of those that were refused."""
        values = [1 << bit for bit in range(self.late)]
        results = [await client.upload([value], time=interval) for value in values]
        return sum(v for v, result in zip(values, results, strict=True) if result.rejected)

    async def _collect_one(self, collector: Collector, query: Query) -> tuple[int, int]:
        async with collector.collect(query) as result:
            assert isinstance(result.value, int)
            found = result.report_count, result.value
        self.collected = self.collected[0] + found[0], self.collected[1] + found[1]
        return found


async def until_decided(leader: DaemonProcess) -> None:
    """Wait until no report waits for its job any more; the daemon runs."""
    undecided = "SELECT 1 FROM report_chunks WHERE state <> 'decided' LIMIT 1"
    while leader.read(undecided):  # noqa: ASYNC110 - of another process, which tells nobody
        await trio.sleep(0.05)


def assert_counted_once(house: House, *loads: Load) -> None:
    """Both Aggregators have counted each report that is in a result as aggregated, and nothing
    else; the Leader has counted every other one that it accepted, which was late, as rejected; and
    their databases are whole.
    """
    accepted = sum(load.accepted[0] for load in loads)
    ids = {load.files.client.task_id for load in loads}
    for daemon in house.daemons:
        counters: Counter[str] = Counter()
        for task_id, name, value in daemon.read(
            "SELECT task_id, name, value FROM task_counters JOIN tasks USING (task_pk)"
        ):
            counters[name] += value if task_id in ids else 0
        uploads = {"upload_accepted", "upload_report_replayed", "upload_batch_collected"}
        aggregated = {name: n for name, n in counters.items() if n and name not in uploads}
        assert aggregated.pop("aggregate_finished") == accepted, daemon.directory.name
        if any(load.late for load in loads):
            rejected = aggregated.pop("aggregate_batch_collected", 0)
        else:
            rejected = 0
        assert aggregated == {}, daemon.directory.name
        assert daemon is house.helper or counters["upload_accepted"] == accepted + rejected
        assert daemon.findings() == []
