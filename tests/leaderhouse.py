"""A Leader without its server, and a Helper on a real socket that answers as a script says."""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

import trio

from dapd.config import Config, Leader
from dapd.config import Datastore as DatastoreSection
from dapd.config import Disk as DiskSection
from dapd.crypto import Keyring
from dapd.datastore import Tx, leases
from dapd.datastore.leases import Due, Lease
from dapd.datastore.sqlite import Row
from dapd.driver import aggregation, creator, uploads
from dapd.driver.dispatcher import Dispatcher
from dapd.driver.step import Step
from dapd.messages.aggregation import AggregationJobInitHead
from dapd.messages.common import MediaType
from dapd.protocol.task import Task
from dapd.reports import HelperJob, ReportRules
from dapd.runtime.context import Context
from tests.build import ANY_TIME, NOW, Pair, add_task, context_around, make_reports, open_store
from tests.peer import Peer, Request, answer

Script = Callable[[Pair, Request], bytes]
"""What the Helper of this pair answers; see ``Peer``."""
QUICK = Leader(min_job_size=1, max_job_size=100, max_wait=0, retry_min=0.001, retry_max=0.001)


@dataclass
class HandClock:
    """Goes only when it is told to."""

    at: int = NOW

    def now(self) -> int:
        return self.at

    def elapsed(self) -> int:
        return self.at


class TrioClock:
    """Starts at ``NOW`` and goes as trio's does."""

    def __init__(self) -> None:
        self._start = trio.current_time()

    def now(self) -> int:
        return NOW + self.elapsed()

    def elapsed(self) -> int:
        return int((trio.current_time() - self._start) * 1000)


@dataclass
class House:
    """``handclock`` is the context's clock unless the house was made with another."""

    context: Context
    task: Task
    pair: Pair
    helper: Peer
    handclock: HandClock
    slots: trio.CapacityLimiter = field(default_factory=lambda: trio.CapacityLimiter(1))

    async def upload(self, count: int, **how: object) -> list[bytes]:
        """Upload ``count`` reports of a Count task through the upload queue; the reports."""
        reports = make_reports(self.pair, [1] * count, **how)  # type: ignore[arg-type]
        result = await self.context.uploads.submit(self.task, b"".join(reports))
        assert result.upload_errors == b""
        return reports

    async def create(self) -> float:
        return await creator.create_due(self.context)

    async def lease(self) -> list[Lease]:
        """Lease every job that is due."""
        leased, _ = await self.context.run(leases.lease_due, self.context.now(), _all)
        return leased

    async def step(self) -> int:
        """Step every due job once, as the dispatcher would; how many there were."""
        leased = await self.lease()
        peer = self.context.peers.at(self.task.configuration.helper_aggregator_endpoint)
        for lease in leased:
            step = Step(lease, self.context.tasks.by_pk(self.task.task_pk), self.slots, peer)
            await aggregation.run(self.context, step)
            if step.has_permit:
                step.peer.release()
        return len(leased)

    def later(self, seconds: float = 1000) -> None:
        """Let everything that waits fall due."""
        self.handclock.at += int(seconds * 1000)

    async def rows(self, sql: str) -> list[Row]:
        def look(tx: Tx) -> list[Row]:
            return tx.all(sql)

        return await self.context.read(look)

    async def states(self) -> Counter[str]:
        return Counter(state for (state,) in await self.rows("SELECT state FROM aggregation_jobs"))

    async def counters(self) -> dict[str, int]:
        return dict(await self.rows("SELECT name, value FROM task_counters"))

    async def aggregated(self) -> int:
        return int((await self.rows("SELECT COALESCE(sum(n), 0) FROM batch_shares"))[0][0])

    async def dispatch(self, until: Callable[[], Awaitable[bool]]) -> None:
        """Run the real dispatcher with one slot until the condition holds."""
        dispatcher = Dispatcher(self.context, {("aggregation", "leader"): aggregation.run}, 1)
        with trio.fail_after(60):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(dispatcher.run)
                while not await until():
                    await trio.lowlevel.checkpoint()
                self.context.drain()


@asynccontextmanager
async def open_house(
    path: Path,
    pair: Pair,
    script: Script,
    *,
    config: Leader = QUICK,
    ticking: bool = False,
) -> AsyncIterator[House]:
    """A Leader of ``pair``'s task, moved to the Helper that answers as ``script`` says."""
    opened = open_store(path / "leader.sqlite")
    handclock = HandClock()
    clock = TrioClock() if ticking else handclock
    helper = Peer(lambda request: script(pair, request))
    try:
        async with trio.open_nursery() as nursery:
            pair = at(pair, await helper.serve(nursery))
            datastore = opened.datastore
            task = add_task(datastore, pair.leader, pair)
            settings = Config(
                datastore=DatastoreSection(path=datastore.path, sealing_keys=(path,)),
                leader=config,
                disk=DiskSection(min_free_bytes=0),
            )
            async with context_around(settings, datastore, pair.sealer, clock) as context:
                nursery.start_soon(uploads.run, context)
                yield House(context, task, pair, helper, handclock)
                context.uploads.close()
            nursery.cancel_scope.cancel()
    finally:
        opened.close()


def at(pair: Pair, url: str) -> Pair:
    """The same pair with its Helper at ``url``."""
    moved = replace(pair.configuration, helper_aggregator_endpoint=f"{url}/helper/").encode()
    return replace(
        pair,
        leader=replace(pair.leader, configuration_bytes=moved),
        helper=replace(pair.helper, configuration_bytes=moved),
    )


def helper_response(pair: Pair, body: bytes, rules: ReportRules = ANY_TIME) -> bytes:
    """The ``AggregationJobResp`` of an honest Helper."""
    head, offset = AggregationJobInitHead.decode(body)
    job = HelperJob(body, offset)
    batch_id = head.extensions[0].data if head.extensions else None
    verified = job.verify(
        pair.helper.parameters,
        rules,
        Keyring([pair.helper_key]),
        pair.sealer,
        bytes(16),
        batch_id,
        bytes(job.count),
    )
    return verified.finish([], bytes(len(verified.candidates([])) // 16)).response


def ready(body: bytes, **headers: str) -> bytes:
    """An answer that carries a response."""
    return answer(200, body, Content_Type=MediaType.AGGREGATION_JOB_RESP, **headers)


def problem(type: str, status: int = 400) -> bytes:
    """An answer that refuses with an error type of the draft."""
    document = f'{{"type": "urn:ietf:params:ppm:dap:error:{type}", "status": {status}}}'
    return answer(status, document.encode(), Content_Type="application/problem+json")


def _all(due: Sequence[Due]) -> list[Due]:
    return list(due)
