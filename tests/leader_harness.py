"""A Leader whose loops a test runs step by step, and a scripted Helper on a real socket."""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import trio

from dapd.config import Config, Leader
from dapd.config import Datastore as DatastoreSection
from dapd.config import Disk as DiskSection
from dapd.datastore import Tx, leases, tasks
from dapd.datastore.leases import Due, Lease
from dapd.datastore.sqlite import Row
from dapd.driver import aggregation, creator, uploads
from dapd.driver.dispatcher import Dispatcher
from dapd.driver.step import Step
from dapd.messages.aggregation import AggregationJobInitHead
from dapd.messages.common import MediaType
from dapd.protocol.task import Task
from dapd.reports import ReportRules
from dapd.runtime.context import Context
from tests.clock import ManualClock
from tests.contexts import add_task, context_around, open_store
from tests.raw_http import Request, answer
from tests.scripted_server import ScriptedServer
from tests.task_pair import ANY_TIME, TaskPair, make_reports

Script = Callable[[TaskPair, Request], bytes]
"""What the Helper of this pair answers; see ``ScriptedServer``."""
QUICK = Leader(min_job_size=1, max_job_size=100, max_wait=0, retry_min=0.001, retry_max=0.001)


@dataclass
class LeaderHarness:
    """A Leader with one task, without its server."""

    context: Context
    task: Task
    pair: TaskPair
    helper: ScriptedServer
    clock: ManualClock
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

    async def know_peer(self) -> None:
        """Note that the Helper has accepted a job of the task before."""
        await self.context.run(tasks.note_peer_accepted, self.task.task_pk)
        self.context.tasks.note_peer_accepted(self.task)

    def later(self, seconds: float = 1000) -> None:
        """Let time pass; by default so much that everything that waits is due."""
        self.clock.advance(seconds)

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
async def open_leader(
    path: Path,
    pair: TaskPair,
    script: Script,
    *,
    config: Leader = QUICK,
    clock: ManualClock | None = None,
) -> AsyncIterator[LeaderHarness]:
    """A Leader of ``pair``'s task, whose Helper answers as ``script`` says.

    Without a ``clock`` time stands still but for ``later``.
    """
    opened = open_store(path / "leader.sqlite")
    clock = clock or ManualClock()
    helper = ScriptedServer(lambda request: script(pair, request))
    try:
        async with trio.open_nursery() as nursery:
            pair = pair.at(f"{await helper.serve(nursery)}/helper/")
            datastore = opened.datastore
            task = add_task(datastore, pair.leader, pair)
            settings = Config(
                datastore=DatastoreSection(path=datastore.path, sealing_keys=(path,)),
                leader=config,
                disk=DiskSection(min_free_bytes=0),
            )
            async with context_around(settings, datastore, pair.sealer, clock) as context:
                nursery.start_soon(uploads.run, context)
                yield LeaderHarness(context, task, pair, helper, clock)
                context.uploads.close()
            nursery.cancel_scope.cancel()
    finally:
        opened.close()


def helper_response(pair: TaskPair, body: bytes, rules: ReportRules = ANY_TIME) -> bytes:
    """The ``AggregationJobResp`` of an honest Helper."""
    head, offset = AggregationJobInitHead.decode(body)
    batch_id = head.extensions[0].data if head.extensions else None
    return pair.help(body[offset:], rules=rules, batch_id=batch_id).response


def honest(pair: TaskPair, request: Request) -> bytes:
    """The script of an honest Helper, which gives out no Location."""
    return answer(204) if request.method == "DELETE" else ready(helper_response(pair, request.body))


def ready(body: bytes, **headers: str) -> bytes:
    """An answer that carries a response."""
    return answer(200, body, Content_Type=MediaType.AGGREGATION_JOB_RESP, **headers)


def problem(type: str, status: int = 400) -> bytes:
    """An answer that refuses with an error type of the draft."""
    document = f'{{"type": "urn:ietf:params:ppm:dap:error:{type}", "status": {status}}}'
    return answer(status, document.encode(), Content_Type="application/problem+json")


def _all(due: Sequence[Due]) -> list[Due]:
    return list(due)
