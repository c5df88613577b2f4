"""What the dispatcher chooses: by slots, permits and age, and alone what may kill the process."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import trio

from dapd.datastore import leases
from dapd.datastore.leases import Due, Lease, Scope
from dapd.driver.dispatcher import Dispatcher, _Chooser
from dapd.driver.step import Step
from dapd.protocol.states import HelperJobState, JobState, LeaderJobState
from dapd.runtime.context import Context
from dapd.runtime.peers import Peer
from tests.clock import ManualClock
from tests.contexts import make_config, open_context
from tests.datastore.test_leases import NOW, add_job
from tests.datastore.test_sqlite import open_new
from tests.effort import counting
from tests.task_pair import task_pair

ASSIGNED, STORED = LeaderJobState.ASSIGNED, LeaderJobState.STORED
POLLING = LeaderJobState.POLLING


HELPER, OTHER = "https://helper.example/", "https://other.example/"
FREE = {HELPER: 8, OTHER: 8}


def job(pk: int, state: JobState, *, task_pk: int = 1, crashes: int = 0) -> Due:
    return Due("aggregation", pk, bytes(16), task_pk, state, pk, 0, 0, crashes)


def pks(chosen: list[Due]) -> list[int]:
    return [each.pk for each in chosen]


def test_e1_computing_jobs_are_bounded_by_slots_and_exchanges_are_not() -> None:
    """Jobs without a slot delay no exchange, nor do exchanges without a permit delay computing."""
    chooser = _Chooser({1: HELPER}.get, {HELPER: 8}, 1)
    due = [job(1, ASSIGNED), job(2, HelperJobState.RECEIVED), job(3, STORED), job(4, POLLING)]
    assert pks(chooser.choose(due)) == [1, 3, 4]


def test_e1_exchanges_are_bounded_by_their_own_peers_permits() -> None:
    """A peer without a free permit delays no other; its oldest due job goes first."""
    chooser = _Chooser({1: HELPER, 2: OTHER}.get, {HELPER: 1, OTHER: 2}, 0)
    due = [job(1, STORED), job(2, STORED), *(job(n, POLLING, task_pk=2) for n in (3, 4, 5))]
    assert pks(chooser.choose(due)) == [1, 3, 4]


def test_e1_a_peer_that_can_not_be_reached_gets_one_probe() -> None:
    """After the back-off a single exchange finds out whether the peer is back."""
    clock = ManualClock()
    failing = Peer(8, clock, lambda: 0.0)
    failing.unreachable(1, 60)
    assert failing.free == 0
    clock.advance(1)
    chooser = _Chooser({1: HELPER}.get, {HELPER: failing.free}, 0)
    assert pks(chooser.choose([job(1, STORED), job(2, STORED)])) == [1]
    failing.answered(serves=True)
    assert failing.free == 8


def held(due: Due, at: str, *, has_permit: bool) -> Step:
    """A step under way."""
    leader = task_pair().leader
    configuration = replace(leader.configuration, helper_aggregator_endpoint=at)
    task = replace(leader, configuration_bytes=configuration.encode())
    peer = Peer(8, ManualClock(), lambda: 0.0)
    return Step(Lease(due, bytes(16)), task, trio.CapacityLimiter(1), peer, has_permit)


def test_e2_a_job_that_may_have_killed_the_process_twice_runs_alone() -> None:
    """If the process crashes again, this job is the only possible culprit."""
    suspect, other = job(1, ASSIGNED, crashes=2), job(2, ASSIGNED)
    peers = {1: HELPER}
    assert pks(_Chooser(peers.get, FREE, 4).choose([suspect, other])) == [1]
    assert pks(_Chooser(peers.get, FREE, 4).choose([other, suspect])) == [2]
    running = held(suspect, peers[1], has_permit=True)
    assert pks(_Chooser(peers.get, FREE, 4, [running]).choose([other])) == []


def test_e2_once_it_is_the_oldest_nothing_starts_before_it() -> None:
    """It can't starve: running computations end, and so do the exchanges with its own peer."""
    suspect, other = job(1, STORED, crashes=2), job(2, ASSIGNED)
    peers = {1: HELPER, 2: OTHER}
    for at, has_permit in ((peers[2], False), (peers[1], True)):
        under_way = held(job(3, STORED), at, has_permit=has_permit)
        assert pks(_Chooser(peers.get, FREE, 4, [under_way]).choose([suspect, other])) == []


def test_e2_it_waits_for_no_exchange_with_another_peer() -> None:
    """A slow Helper of another task must not keep it from running."""
    suspect, other = job(1, ASSIGNED, crashes=2), job(2, STORED, task_pk=2)
    peers = {1: HELPER, 2: OTHER}
    slow = held(job(3, STORED, task_pk=2), peers[2], has_permit=True)
    assert pks(_Chooser(peers.get, FREE, 4, [slow]).choose([suspect, other])) == [1]


def test_a_job_of_a_task_that_is_not_loaded_yet_waits() -> None:
    """A command may have added the task a moment ago."""
    assert _Chooser({1: HELPER}.get, {HELPER: 8}, 4).choose([job(1, ASSIGNED, task_pk=9)]) == []


def test_e1_the_backlog_of_a_blocked_peer_hides_no_other_job(tmp_path: Path) -> None:
    """The dispatcher finds other peers' due jobs, however many older ones the blocked peer has."""
    datastore = open_new(tmp_path)
    for task_pk in (1, 2):
        datastore.run_sync(add_job, task_pk, "stored", NOW - 1000, peer=f"peer {task_pk}")
    for _ in range(20):
        datastore.run_sync(add_job, 1, "stored", NOW - 2000, peer="peer 1")
    seen, _ = datastore.run_sync(leases.lease_due, NOW, list, Scope(blocked=["peer 1"]), 5)
    assert [lease.due.task_pk for lease in seen] == [2]


def test_e1_a_peer_with_few_permits_hides_no_other_peers_jobs(tmp_path: Path) -> None:
    """However many older ones it has: it can start no more of them than it has permits."""
    datastore = open_new(tmp_path)
    for _ in range(20):
        datastore.run_sync(add_job, 1, "stored", NOW - 2000, peer="peer 1")
    datastore.run_sync(add_job, 2, "polling", NOW - 1000, peer="peer 2")
    seen, _ = datastore.run_sync(leases.lease_due, NOW, list, Scope(per_peer=3), 5)
    assert [lease.due.task_pk for lease in seen] == [1, 1, 1, 2]


def test_e1_the_backlog_of_a_blocked_peer_costs_a_dispatch_nothing(tmp_path: Path) -> None:
    """SQLite does as much with 2,000 of its jobs as with 20, of as many tasks."""
    datastore = open_new(tmp_path)
    datastore.run_sync(add_job, 201, "stored", NOW, peer="another")
    efforts = []
    for number in (20, 1980):
        for each in range(number):
            state = "polling" if each % 2 else "stored"
            datastore.run_sync(add_job, 1 + each % 200, state, NOW - 2000, peer="blocked")
        with counting(datastore.path) as (tx, effort):
            scope = Scope(blocked=["blocked"], per_peer=1)
            [lease], _ = leases.lease_due(tx, NOW, list, scope)
            leases.release(tx, lease, NOW)
        assert lease.due.task_pk == 201
        efforts.append(effort.steps)
    assert efforts[0] == efforts[1]


async def test_i5_a_job_in_its_exchange_keeps_no_slot_from_others(tmp_path: Path) -> None:
    """The next job starts, however many jobs wait for a Helper that hangs."""
    pair = task_pair()
    held, all_started = trio.Event(), trio.Event()
    started: list[int] = []

    async def start_then_hang(context: Context, step: Step) -> None:
        async with step.slots:
            started.append(step.lease.pk)
        context.jobs.ring()
        if len(started) == 5:
            all_started.set()
        await held.wait()
        await context.run(leases.release, step.lease, NOW + leases.LEASE_MS)

    async with open_context(make_config(tmp_path), (pair.leader, pair)) as context:
        for _ in range(5):
            await context.run(add_job)
        dispatcher = Dispatcher(context, {("aggregation", "leader"): start_then_hang}, 1)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(dispatcher.run)
            with trio.fail_after(60):
                await all_started.wait()
            context.drain()
            held.set()
    assert sorted(started) == [1, 2, 3, 4, 5]


async def test_e2_a_peers_long_wait_is_kept_until_the_clock_is_set_back(tmp_path: Path) -> None:
    """A Retry-After may be longer than any configured wait; once after a start, and after the clock
    was set back, such a job is due.
    """
    pair = task_pair()
    told_for_hours = ManualClock().now() + 6 * 3600 * 1000
    runs = 0

    async def wait_again(context: Context, step: Step) -> None:
        nonlocal runs
        runs += 1
        await context.run(leases.release, step.lease, told_for_hours)

    async with open_context(make_config(tmp_path), (pair.leader, pair)) as context:
        clock = context.clock
        assert isinstance(clock, ManualClock)
        await context.run(add_job, 1, "stored", told_for_hours)
        dispatcher = Dispatcher(context, {("aggregation", "leader"): wait_again}, 1)

        async def runs_after_a_round() -> int:
            async with trio.open_nursery() as nursery:
                await dispatcher.dispatch(nursery)
            return runs

        assert await runs_after_a_round() == 1  # a start
        clock.advance(60)
        assert await runs_after_a_round() == 1
        clock.jump(-3600)
        assert await runs_after_a_round() == 2
        assert await runs_after_a_round() == 2


async def test_e2_a_suspect_runs_beside_the_exchanges_of_another_tasks_slow_helper(
    tmp_path: Path,
) -> None:
    """It runs however many of those exchanges there are, and however long they take."""
    slow, suspected = task_pair(), task_pair()
    slow_url = "http://127.0.0.1:1/slow"
    configuration = replace(slow.leader.configuration, helper_aggregator_endpoint=slow_url)
    slow_leader = replace(slow.leader, configuration_bytes=configuration.encode())
    hang, suspect_ran = trio.Event(), trio.Event()
    sent: list[int] = []

    async def hang_or_run(context: Context, step: Step) -> None:
        if step.lease.due.crashes > 1:
            assert len(sent) >= 3
            suspect_ran.set()
        else:
            sent.append(step.lease.pk)
            context.jobs.ring()
            await hang.wait()
        await context.run(leases.release, step.lease, context.now() + leases.LEASE_MS)

    async with open_context(
        make_config(tmp_path), (slow_leader, slow), (suspected.leader, suspected)
    ) as context:
        first, second = sorted(
            context.tasks.all(), key=lambda task: task.task_id != slow_leader.task_id
        )
        for age in range(3):
            await context.run(add_job, first.task_pk, "stored", NOW - 100 + age)
        await context.run(add_job, second.task_pk, "assigned", NOW - 50)
        await context.run(
            lambda tx: tx.execute(
                "UPDATE aggregation_jobs SET crashes = 2 WHERE task_pk = :pk", pk=second.task_pk
            )
        )
        for age in range(3):
            await context.run(add_job, first.task_pk, "stored", NOW - 10 + age)
        dispatcher = Dispatcher(context, {("aggregation", "leader"): hang_or_run}, 1)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(dispatcher.run)
            with trio.fail_after(60):
                await suspect_ran.wait()
            context.drain()
            hang.set()


async def test_e2_a_lease_that_can_not_be_given_back_ends_by_itself(tmp_path: Path) -> None:
    """A full disk fails the step and the release after it, but doesn't end the dispatcher; the job
    runs again once there is room.
    """
    pair = task_pair()
    runs = 0

    async def fail_as_everything_does(context: Context, step: Step) -> None:
        nonlocal runs
        runs += 1
        context.datastore._writer.execute("PRAGMA query_only = ON")
        await context.run(leases.release, step.lease, NOW)

    async with open_context(make_config(tmp_path), (pair.leader, pair)) as context:
        clock = context.clock
        assert isinstance(clock, ManualClock)
        await context.run(add_job)
        dispatcher = Dispatcher(context, {("aggregation", "leader"): fail_as_everything_does}, 1)
        for expected in (1, 1, 2):
            async with trio.open_nursery() as nursery:
                await dispatcher.dispatch(nursery)
            context.datastore._writer.execute("PRAGMA query_only = OFF")
            assert runs == expected
            clock.advance(leases.LEASE_MS / 2000 + 1)
