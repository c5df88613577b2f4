"""A Helper whose jobs a test drives step by step, without its server."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import trio

from dapd import config
from dapd.datastore import Tx, batches, leases
from dapd.datastore.helper_jobs import StoredJob
from dapd.driver import helper_job
from dapd.driver.step import Step
from dapd.protocol.states import RangeState
from dapd.protocol.task import Task
from dapd.runtime.context import Context
from tests.clock import ManualClock
from tests.contexts import clock_of, make_config, open_context
from tests.task_pair import LeaderJob, TaskPair, leader_job

_LO, _HI = b"", b"\xff" * 33


@dataclass
class HelperHarness:
    """A Helper with one task; the test is its Leader."""

    context: Context
    task: Task
    pair: TaskPair

    @property
    def clock(self) -> ManualClock:
        return clock_of(self.context)

    def job(self, reports: Sequence[bytes], batch_id: bytes | None = None) -> LeaderJob:
        """A Leader's job over these reports, which is not sent yet."""
        return leader_job(self.pair, reports, batch_id=batch_id)

    async def create(self, job: LeaderJob) -> StoredJob:
        """What a POST of the job returns. Raises ``Abort``."""
        return await self.post(job.body)

    async def post(self, body: bytes) -> StoredJob:
        """What a POST of this body returns. Raises ``Abort``."""
        return await helper_job.create(self.context, self.task, body)

    async def outcomes(self, job: LeaderJob) -> bytes:
        """The outcomes that the Leader takes from the Helper's answer, which must be complete."""
        created = await self.create(job)
        assert created.response is not None
        return job.finish(created.response)

    async def drive(self) -> int:
        """Step every due job once, as the dispatcher would; how many there were."""
        leased, _ = await self.context.run(leases.lease_due, self.context.now(), list)
        peer = self.context.peers.at(self.task.configuration.helper_aggregator_endpoint)
        for lease in leased:
            step = Step(lease, self.task, trio.CapacityLimiter(1), peer)
            await helper_job.run(self.context, step)
        return len(leased)

    async def aggregated(self) -> int:
        return await self.context.read(batches.aggregated, self.task.task_pk, _LO, _HI)

    async def collect(self, lo: bytes, hi: bytes) -> None:
        """Mark the buckets of [lo, hi) collected, as an aggregate share does."""

        def close(tx: Tx) -> None:
            batches.close(
                tx, self.task.task_pk, lo, hi, state=RangeState.COLLECTED, collection_pk=None
            )

        await self.context.run(close)


@asynccontextmanager
async def open_helper(
    path: Path, pair: TaskPair, *, mode: Literal["sync", "async", "auto"] = "sync", **settings: Any
) -> AsyncIterator[HelperHarness]:
    """A Helper of ``pair``'s task, whose time stands still; ``settings`` are of ``[helper]``."""
    made = make_config(path, helper=config.Helper(mode=mode, **settings))
    async with open_context(made, (pair.helper, pair)) as context:
        [task] = context.tasks.all()
        yield HelperHarness(context, task, pair)
