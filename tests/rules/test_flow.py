"""Rules E1 to E5: who may compute, exchange and write, and when."""

from __future__ import annotations

from pathlib import Path

import pytest
import trio
import trio.testing

from dapd.config import Leader
from dapd.datastore import leases, open_for_command, tasks
from dapd.datastore.helper_jobs import StoredJob
from dapd.datastore.leases import LEASE_MS
from dapd.driver import aggregation
from dapd.driver.dispatcher import Dispatcher
from dapd.driver.step import Step
from dapd.errors import Abort, DatastoreError
from dapd.reports import ReportError
from dapd.runtime.context import Context
from tests.clock import NOW
from tests.contexts import NativeGate, clock_of, make_config, open_context, open_store
from tests.datastore.test_leases import add_job
from tests.helper_harness import open_helper
from tests.leader_harness import helper_response, open_leader, ready
from tests.raw_http import Request, answer
from tests.task_pair import TaskPair, make_reports, report_ids, task_pair


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


async def test_e1_a_peer_that_is_away_is_asked_by_one_job_at_a_time(tmp_path: Path) -> None:
    """Three jobs wait for it. During its pause none is sent; after it a single one finds out."""
    away = [True]

    def script(pair: TaskPair, request: Request) -> bytes:
        if away[0]:
            return b""
        return (
            answer(204)
            if request.method == "DELETE"
            else ready(helper_response(pair, request.body))
        )

    limits = Leader(min_job_size=1, max_job_size=2, max_wait=0, retry_min=10, retry_max=10)
    async with open_leader(tmp_path, task_pair(), script, config=limits) as house:
        for _ in range(3):
            await house.upload(2)
        await house.create()
        dispatcher = Dispatcher(house.context, {("aggregation", "leader"): aggregation.run}, 1)

        async def dispatch() -> int:
            """Run one round to its end; how many requests the peer has got by then."""
            async with trio.open_nursery() as nursery:
                await dispatcher.dispatch(nursery)
            return len(house.helper.requests)

        while await house.states() != {"stored": 3}:
            sent = await dispatch()
        assert await dispatch() == sent, "it is left alone"
        house.later(11)
        assert await dispatch() == sent + 1
        away[0] = False
        while await house.states() != {"finished": 3}:
            house.later(11)
            await dispatch()
        assert await house.aggregated() == 6


@pytest.mark.parametrize("exchange", [False, True])
async def test_e2_a_step_that_ends_clears_its_job_of_the_crash_before_it(
    tmp_path: Path, exchange: bool
) -> None:
    """The process died while it had the job, again weeks later, but not in between: no suspect."""
    async with open_leader(tmp_path, task_pair(), lambda _, __: answer(500)) as house:
        await house.upload(1)
        await house.create()
        context = house.context
        for _ in range(2):
            [lease] = await house.lease()
            assert lease.due.crashes == 0
            await context.run(leases.clear_all, context.now())  # the process has died
            if exchange:
                await house.step()
            else:
                [lease] = await house.lease()
                assert lease.due.crashes == 1
                await context.run(leases.release, lease, context.now())
            house.later()


async def test_e3_what_a_commit_leaves_out_is_subtracted_to_the_byte(tmp_path: Path) -> None:
    """The replay was not known when the job was verified. A whole job has one share for each
    bucket, however many reports there are.
    """
    pair = task_pair()
    ids = report_ids(20)
    reports = make_reports(pair, [1] * 20, ids=ids)
    whole, rest = pair.start(reports), pair.start(reports[1:])
    verified = pair.verify(whole.verify_inits)
    late = verified.finish([], b"\1" + bytes(19))
    early = pair.verify(rest.verify_inits).finish([], bytes(19))
    assert late.outcomes == bytes([ReportError.REPORT_REPLAYED]) + bytes(19)
    assert pair.totals(late.buckets) == pair.totals(early.buckets)
    assert len(late.buckets) == 1


async def test_e4_with_a_full_disk_running_work_is_committed_and_new_work_refused(
    tmp_path: Path, mock_clock: trio.testing.MockClock
) -> None:
    """The disk fills up while a job is verified; a repeat of its request joins it."""
    async with open_helper(tmp_path, task_pair(), sync_wait=3600) as house:
        job, other = (house.job(make_reports(house.pair, [1])) for _ in range(2))
        gate = NativeGate(house.context)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(house.create, job)
            await gate.arrived()
            house.context.disk.min_free_bytes = 1 << 60
            mock_clock.jump(10)  # the disk is looked at once a second
            with pytest.raises(Abort) as caught:
                await house.create(other)
            assert caught.value.status == 503
            nursery.start_soon(house.create, job)
            await trio.testing.wait_all_tasks_blocked()
            gate.open()
        assert await house.aggregated() == 1


async def test_e5_one_daemon_has_the_file_and_a_command_beside_it_adds_a_task(
    tmp_path: Path,
) -> None:
    """A second daemon is told who has it. The first one finds the new task at its first request."""
    pair, new = task_pair(), task_pair()
    async with open_context(make_config(tmp_path), (pair.leader, pair)) as context:
        path = context.datastore.path
        with pytest.raises(DatastoreError, match="a test"):
            open_store(path)
        command = open_for_command(path, holder="a command", now=NOW)
        assert command.lock is None
        added = command.datastore.run_sync(tasks.insert, new.leader, new.sealer)
        command.close()
        found = await context.tasks.find(new.leader.task_id)
        assert found is not None
        assert found.task_pk == added.task_pk
    open_store(path).close()
