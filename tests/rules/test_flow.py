"""Rules E1 to E5: who may compute, exchange and write, and when."""

from __future__ import annotations

from pathlib import Path

import trio
import trio.testing

from dapd.datastore import leases
from dapd.datastore.helper_jobs import StoredJob
from dapd.datastore.leases import LEASE_MS
from dapd.driver.dispatcher import Dispatcher
from dapd.driver.step import Step
from dapd.runtime.context import Context
from tests.contexts import NativeGate, clock_of, make_config, open_context
from tests.datastore.test_leases import add_job
from tests.helper_harness import open_helper
from tests.task_pair import make_reports, task_pair


async def test_e2_the_lease_of_a_job_that_is_answered_late_is_renewed(
    tmp_path: Path, mock_clock: trio.testing.MockClock
) -> None:
    """Its verification goes on for longer than a lease, and no other step may take it meanwhile."""
    async with open_helper(tmp_path, task_pair(), sync_wait=1) as house:
        job = house.job(make_reports(house.pair, [1, 1]))
        gate = NativeGate(house.context)
        answers: list[StoredJob] = []

        async def create() -> None:
            answers.append(await house.create(job))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(create)
            await gate.arrived()
            await trio.testing.wait_all_tasks_blocked()
            mock_clock.jump(1)
        assert [each.state for each in answers] == ["received"]
        for _ in range(6):
            house.clock.advance(LEASE_MS / 1000 / 3)
            mock_clock.jump(LEASE_MS / 1000 / 3)
            # The renewal is in the writer's queue then, and the leasing comes after it.
            await trio.testing.wait_all_tasks_blocked()
            leased, _ = await house.context.run(leases.lease_due, house.context.now(), list)
            assert leased == []
        ended = house.context.finished.listen(("aggregation", answers[0].id))
        gate.open()
        await ended.wait()
        assert await house.outcomes(job) == bytes(2)
        assert await house.aggregated() == 2


async def test_e2_the_lease_of_a_step_is_renewed_for_as_long_as_it_lives(
    tmp_path: Path, mock_clock: trio.testing.MockClock
) -> None:
    """A Helper may take longer to answer than a lease lasts; nobody sends the job beside it."""
    pair, answered = task_pair(), trio.Event()
    runs = 0

    async def exchange_for_long(context: Context, step: Step) -> None:
        nonlocal runs
        runs += 1
        await answered.wait()
        await context.run(leases.release, step.lease, context.now() + LEASE_MS)

    async with open_context(make_config(tmp_path), (pair.leader, pair)) as context:
        await context.run(add_job, context.tasks.all()[0].task_pk, "stored")
        dispatcher = Dispatcher(context, {("aggregation", "leader"): exchange_for_long}, 1)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(dispatcher.run)
            while not runs:
                await trio.lowlevel.checkpoint()
            for _ in range(6):
                clock_of(context).advance(LEASE_MS / 1000 / 3)
                mock_clock.jump(LEASE_MS / 1000 / 3)
                await trio.testing.wait_all_tasks_blocked()
                leased, _ = await context.run(leases.lease_due, context.now(), list)
                assert leased == []
            context.drain()
            answered.set()
        assert runs == 1
