"""The Helper's aggregation jobs: sync, async, auto, answered late, joined, deleted."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import pytest
import trio
import trio.testing

from dapd import config
from dapd.commits.helper_jobs import REWORK_SECONDS, commit_job, delete_aggregation_job
from dapd.commits.tasks import delete_task
from dapd.crypto import HpkeKeypair
from dapd.datastore import Tx, batches, keys, leases, open_for_command
from dapd.datastore.helper_jobs import JobKey, StoredJob
from dapd.driver import helper_job
from dapd.driver.step import Step
from dapd.errors import Abort
from dapd.messages.task import Prio3Histogram
from dapd.protocol.task import Task, TaskSettings
from dapd.reports import ReportError
from dapd.runtime.context import Context
from tests.clock import NOW, TIME
from tests.contexts import NativeGate, make_config, open_context
from tests.task_pair import JOB, X25519, LeaderJob, TaskPair, leader_job, make_reports, task_pair

LO, HI = bytes(8), b"\xff" * 8
REPLAYED = ReportError.REPORT_REPLAYED


@pytest.fixture(scope="module")
def pair() -> TaskPair:
    return task_pair()


def outcomes(job: LeaderJob, stored: StoredJob) -> bytes:
    assert stored.response is not None
    return job.finish(stored.response)


async def task_in(context: Context, pair: TaskPair) -> Task:
    task = await context.tasks.find(pair.helper.task_id)
    assert task is not None
    return task


async def aggregated(context: Context, task: Task) -> int:
    return await context.read(batches.aggregated, task.task_pk, LO, HI)


async def drive(context: Context) -> int:
    """Run one step of each due job, as the dispatcher would. Return how many there were."""
    leased, _ = await context.run(leases.lease_due, context.now(), list)
    slots = trio.CapacityLimiter(1)
    for lease in leased:
        task = context.tasks.by_pk(lease.due.task_pk)
        peer = context.peers.at(task.configuration.helper_aggregator_endpoint)
        await helper_job.run(context, Step(lease, task, slots, peer))
    return len(leased)


def helper_config(directory: Path, **settings: Any) -> config.Config:
    return make_config(directory, helper=config.Helper(**settings))


async def test_sync_a_job_is_finished_when_it_is_answered(tmp_path: Path, pair: TaskPair) -> None:
    async with open_context(helper_config(tmp_path, mode="sync"), (pair.helper, pair)) as context:
        task = await task_in(context, pair)
        job = leader_job(pair, make_reports(pair, [1, 0, 1]))
        first = await helper_job.create(context, task, job.body)
        assert outcomes(job, first) == bytes(3)
        assert await helper_job.create(context, task, job.body) == first  # A1
        assert context.rates.ahead == 0
        assert await drive(context) == 0


async def test_async_a_job_is_stored_then_driven(tmp_path: Path, pair: TaskPair) -> None:
    """Repeats get the same id and the present state; the response is that of the sync mode (I6)."""
    async with open_context(helper_config(tmp_path, mode="async"), (pair.helper, pair)) as context:
        task = await task_in(context, pair)
        job = leader_job(pair, make_reports(pair, [1, 0, 1], tamper_with=[0]))
        received = await helper_job.create(context, task, job.body)
        assert (received.state, received.response) == ("received", None)
        assert await helper_job.create(context, task, job.body) == received
        assert context.rates.ahead > 0
        assert await drive(context) == 1
        finished = await helper_job.create(context, task, job.body)
        assert finished.id == received.id
        assert outcomes(job, finished) == bytes([ReportError.VDAF_VERIFY_ERROR, 0, 0])
        assert context.rates.ahead == 0
        assert await drive(context) == 0


async def test_the_tasks_mode_overrides_the_servers(tmp_path: Path) -> None:
    pair = task_pair(settings=TaskSettings(helper_mode="sync"))
    async with open_context(helper_config(tmp_path, mode="async"), (pair.helper, pair)) as context:
        task = await task_in(context, pair)
        job = leader_job(pair, make_reports(pair, [1]))
        assert (await helper_job.create(context, task, job.body)).state == "finished"


@pytest.mark.parametrize(("limit", "state"), [(3600, "finished"), (0, "received")])
async def test_auto_decides_by_the_estimate(
    tmp_path: Path, pair: TaskPair, limit: float, state: str
) -> None:
    settings = helper_config(tmp_path, mode="auto", auto_sync_seconds=limit)
    async with open_context(settings, (pair.helper, pair)) as context:
        job = leader_job(pair, make_reports(pair, [1]))
        created = await helper_job.create(context, await task_in(context, pair), job.body)
        assert created.state == state


async def test_a2_identical_requests_join_the_running_work(tmp_path: Path, pair: TaskPair) -> None:
    """One verification answers both, and the second doesn't count for the limit."""
    settings = helper_config(tmp_path, mode="sync", max_running=1)
    async with open_context(settings, (pair.helper, pair)) as context:
        task = await task_in(context, pair)
        job, other = (leader_job(pair, make_reports(pair, [1, 1])) for _ in range(2))
        gate = NativeGate(context)
        answers: list[StoredJob] = []

        async def ask() -> None:
            answers.append(await helper_job.create(context, task, job.body))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(ask)
            await gate.arrived()
            nursery.start_soon(ask)
            with pytest.raises(Abort) as caught:
                await helper_job.create(context, task, other.body)
            assert caught.value.status == 503
            gate.open()
        assert answers[0] == answers[1]
        assert await aggregated(context, task) == 2


async def test_a2_work_goes_on_when_its_client_is_gone(tmp_path: Path, pair: TaskPair) -> None:
    """The handler is cancelled, but the work reaches its commit, and a repeat finds it."""
    async with open_context(helper_config(tmp_path, mode="sync"), (pair.helper, pair)) as context:
        task = await task_in(context, pair)
        job = leader_job(pair, make_reports(pair, [1, 1]))
        gate = NativeGate(context)
        async with trio.open_nursery() as handler:
            handler.start_soon(helper_job.create, context, task, job.body)
            await gate.arrived()
            handler.cancel_scope.cancel()
        assert len(context.work) == 1
        gate.open()
        assert outcomes(job, await helper_job.create(context, task, job.body)) == bytes(2)
        assert await aggregated(context, task) == 2


async def test_a2_after_sync_wait_the_job_is_stored_and_the_commit_claims_it(
    tmp_path: Path, pair: TaskPair
) -> None:
    """The answer is "not ready", with the id that the job keeps; the dispatcher leaves the job
    alone.
    """
    settings = helper_config(tmp_path, mode="sync", sync_wait=0.001)
    async with open_context(settings, (pair.helper, pair)) as context:
        task = await task_in(context, pair)
        job = leader_job(pair, make_reports(pair, [1, 1]))
        gate = NativeGate(context)
        received = await helper_job.create(context, task, job.body)
        assert received.state == "received"
        assert await helper_job.create(context, task, job.body) == received
        assert await drive(context) == 0
        event = context.finished.listen(("aggregation", received.id))
        gate.open()
        await event.wait()
        finished = await helper_job.find(context, task, received.id)
        assert outcomes(job, finished) == bytes(2)
        assert await aggregated(context, task) == 2


async def test_a2_a_late_job_whose_work_fails_is_left_to_the_driver(
    tmp_path: Path, pair: TaskPair
) -> None:
    settings = helper_config(tmp_path, mode="sync", sync_wait=0.001)
    async with open_context(settings, (pair.helper, pair)) as context:
        task = await task_in(context, pair)
        job = leader_job(pair, make_reports(pair, [1]))
        gate = NativeGate(context)
        received = await helper_job.create(context, task, job.body)
        await context.run(lambda tx: tx.execute("ALTER TABLE batch_shares RENAME TO elsewhere"))
        gate.open()
        while len(context.work):
            await trio.lowlevel.checkpoint()
        await context.run(lambda tx: tx.execute("ALTER TABLE elsewhere RENAME TO batch_shares"))
        assert await drive(context) == 1
        assert (await helper_job.find(context, task, received.id)).state == "finished"


async def test_e3_what_is_known_to_be_replayed_is_not_verified(
    tmp_path: Path, pair: TaskPair
) -> None:
    """The Helper asks the replay index first, and computes nothing for ids that it contains."""
    async with open_context(helper_config(tmp_path, mode="sync"), (pair.helper, pair)) as context:
        task = await task_in(context, pair)
        reports = make_reports(pair, [1, 1, 1])
        first, second = leader_job(pair, reports), leader_job(pair, reports[:2])
        await helper_job.create(context, task, first.body)
        measured = context.rates.seconds_per_report(task)
        answered = outcomes(second, await helper_job.create(context, task, second.body))
        assert answered == bytes([REPLAYED, REPLAYED])
        assert context.rates.seconds_per_report(task) == measured, "nothing was measured"


async def test_e3_where_the_transaction_disagrees_too_much_the_job_is_verified_again(
    tmp_path: Path,
) -> None:
    """The transaction must not recompute much under the write lock: verification runs again
    outside.
    """
    pair = task_pair(Prio3Histogram(length=100_000, chunk_length=316))
    async with open_context(helper_config(tmp_path, mode="sync"), (pair.helper, pair)) as context:
        task = await task_in(context, pair)
        reports = make_reports(pair, [1, 1, 0])
        first, second = leader_job(pair, reports[:1]), leader_job(pair, reports)
        verified = pair.verify(first.start.verify_inits)
        rework = pair.verify(second.start.verify_inits).rework_seconds([], b"\x01\x00\x00")
        assert rework > REWORK_SECONDS
        late = threading.Event()

        def commit_late(tx: Tx) -> None:
            """The first job is committed between the second's look at the index and its commit."""
            late.wait()
            key = JobKey(task.task_pk, JOB, bytes(32), 1, b"", bytes(16), TIME)
            commit_job(tx, key, verified, NOW, stored=False)

        async def create() -> None:
            finished = await helper_job.create(context, task, second.body)
            assert outcomes(second, finished) == bytes([REPLAYED, 0, 0])

        async with trio.open_nursery() as nursery:
            nursery.start_soon(context.run, commit_late)
            nursery.start_soon(create)
            while verifications(context) < 1:
                await trio.lowlevel.checkpoint()
            late.set()
        assert verifications(context) == 2
        assert await aggregated(context, task) == 3


def verifications(context: Context) -> int:
    """How many jobs were verified, or verified again."""
    name, labels = "dapd_native_seconds_count", {"call": "_verify"}
    return int(context.metrics.registry.get_sample_value(name, labels) or 0)


async def test_f1_an_unknown_config_id_reads_the_keys_again(
    tmp_path: Path, pair: TaskPair, mock_clock: trio.testing.MockClock
) -> None:
    """A key that was added to a running daemon opens the first report encrypted to it."""
    async with open_context(helper_config(tmp_path, mode="sync"), (pair.helper, pair)) as context:
        task = await task_in(context, pair)
        new = HpkeKeypair.generate(77, *X25519)
        await context.run(keys.insert_keypair, new, context.sealer, "active", NOW)
        mock_clock.jump(10)  # the table is read at most once a second
        fresh = TaskPair(
            pair.leader, pair.helper, pair.leader_key, new, pair.collector_key, pair.sealer
        )
        job = leader_job(fresh, make_reports(fresh, [1]))
        assert outcomes(job, await helper_job.create(context, task, job.body)) == bytes(1)


async def test_b2_an_unknown_config_id_is_a_decrypt_error(tmp_path: Path, pair: TaskPair) -> None:
    async with open_context(helper_config(tmp_path, mode="sync"), (pair.helper, pair)) as context:
        task = await task_in(context, pair)
        other = HpkeKeypair.generate(78, *X25519)
        lost = TaskPair(
            pair.leader, pair.helper, pair.leader_key, other, pair.collector_key, pair.sealer
        )
        job = leader_job(lost, make_reports(lost, [1]))
        answered = outcomes(job, await helper_job.create(context, task, job.body))
        assert answered == bytes([ReportError.HPKE_DECRYPT_ERROR])


async def test_b2_a_report_is_judged_by_the_time_of_its_verification(
    tmp_path: Path, pair: TaskPair
) -> None:
    async with open_context(helper_config(tmp_path, mode="sync"), (pair.helper, pair)) as context:
        job = leader_job(pair, make_reports(pair, [1, 1], times=[TIME, TIME + 1]))
        created = await helper_job.create(context, await task_in(context, pair), job.body)
        assert outcomes(job, created) == bytes([0, ReportError.REPORT_TOO_EARLY])


async def test_e4_a_full_disk_refuses_new_jobs_alone(
    tmp_path: Path, pair: TaskPair, mock_clock: trio.testing.MockClock
) -> None:
    """New jobs get 503 with Retry-After; a repeat of a known request is answered."""
    async with open_context(helper_config(tmp_path, mode="sync"), (pair.helper, pair)) as context:
        task = await task_in(context, pair)
        known, new = (leader_job(pair, make_reports(pair, [1])) for _ in range(2))
        finished = await helper_job.create(context, task, known.body)
        context.disk.min_free_bytes = 1 << 60
        mock_clock.jump(10)  # the disk is looked at once a second
        assert await helper_job.create(context, task, known.body) == finished
        with pytest.raises(Abort) as caught:
            await helper_job.create(context, task, new.body)
        assert caught.value.status == 503
        assert "Retry-After" in caught.value.headers


async def test_a_get_is_held_until_the_job_is_finished(tmp_path: Path, pair: TaskPair) -> None:
    settings = helper_config(tmp_path, mode="async", poll_hold=3600)
    async with open_context(settings, (pair.helper, pair)) as context:
        task = await task_in(context, pair)
        job = leader_job(pair, make_reports(pair, [1, 1]))
        received = await helper_job.create(context, task, job.body)
        polled: list[StoredJob] = []

        async def poll() -> None:
            polled.append(await helper_job.poll(context, task, received.id, "0"))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(poll)
            await trio.testing.wait_all_tasks_blocked()
            await drive(context)
        assert outcomes(job, polled[0]) == bytes(2)


async def test_i8_a_held_get_is_answered_at_once_when_draining(
    tmp_path: Path, pair: TaskPair
) -> None:
    """So are those that arrive while the daemon drains."""
    settings = helper_config(tmp_path, mode="async", poll_hold=3600)
    async with open_context(settings, (pair.helper, pair)) as context:
        task = await task_in(context, pair)
        job = leader_job(pair, make_reports(pair, [1]))
        received = await helper_job.create(context, task, job.body)

        async def poll() -> None:
            assert await helper_job.poll(context, task, received.id, "0") == received

        async with trio.open_nursery() as nursery:
            nursery.start_soon(poll)
            await trio.testing.wait_all_tasks_blocked()
            context.drain()
        await poll()


async def test_a4_the_job_is_known_before_the_step_is_judged(
    tmp_path: Path, pair: TaskPair
) -> None:
    async with open_context(helper_config(tmp_path, mode="sync"), (pair.helper, pair)) as context:
        task = await task_in(context, pair)
        created = await helper_job.create(
            context, task, leader_job(pair, make_reports(pair, [1])).body
        )
        for job_id, text, error in (
            (created.id, None, "invalidMessage"),
            (created.id, "1", "stepMismatch"),
            (bytes(16), "1", "unrecognizedAggregationJob"),
            (None, "0", "unrecognizedAggregationJob"),
        ):
            with pytest.raises(Abort) as caught:
                await helper_job.poll(context, task, job_id, text)
            assert caught.value.type == error


async def test_a6_a_job_deleted_while_it_is_verified_admits_nothing(
    tmp_path: Path, pair: TaskPair
) -> None:
    """The commit finds nothing to claim; the step ends without error, and the job stays deleted."""
    async with open_context(helper_config(tmp_path, mode="async"), (pair.helper, pair)) as context:
        task = await task_in(context, pair)
        job = leader_job(pair, make_reports(pair, [1, 1]))
        received = await helper_job.create(context, task, job.body)
        gate = NativeGate(context)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(drive, context)
            await gate.arrived()
            assert await context.run(delete_aggregation_job, task.task_pk, received.id)
            gate.open()
        assert await aggregated(context, task) == 0
        assert len(context.datastore.replay) == 0
        with pytest.raises(Abort) as caught:
            await helper_job.find(context, task, received.id)
        assert caught.value.type == "unrecognizedAggregationJob"


async def test_e2_a_stored_job_survives_the_process(tmp_path: Path, pair: TaskPair) -> None:
    """The next process takes over the lease of the one that ended, and finishes the job."""
    settings = helper_config(tmp_path, mode="async")
    async with open_context(settings, (pair.helper, pair)) as context:
        task = await task_in(context, pair)
        job = leader_job(pair, make_reports(pair, [1, 1]))
        received = await helper_job.create(context, task, job.body)
        leased, _ = await context.run(leases.lease_due, context.now(), list)
        assert len(leased) == 1
    async with open_context(settings) as context:
        await context.run(leases.clear_all, context.now())
        assert await drive(context) == 1
        finished = await helper_job.find(context, await task_in(context, pair), received.id)
        assert outcomes(job, finished) == bytes(2)


async def test_i8_a_late_job_is_due_for_the_successor_when_grace_is_over(
    tmp_path: Path, pair: TaskPair
) -> None:
    """The daemon cancels the work between transactions and releases the lease: this is no crash."""
    settings = helper_config(tmp_path, mode="sync", sync_wait=0.001)
    job = leader_job(pair, make_reports(pair, [1]))
    async with open_context(settings, (pair.helper, pair)) as context:
        NativeGate(context)
        received = await helper_job.create(context, await task_in(context, pair), job.body)
        assert received.state == "received"
    async with open_context(settings) as context:
        leased, _ = await context.run(leases.lease_due, context.now(), list)
        assert [lease.due.crashes for lease in leased] == [0]


async def test_d6_a_job_whose_task_is_deleted_meanwhile_admits_nothing(
    tmp_path: Path, pair: TaskPair
) -> None:
    """D6: the deletion raises the mark above all its reports; they are verified again, once, by
    that mark.
    """
    async with open_context(helper_config(tmp_path, mode="sync"), (pair.helper, pair)) as context:
        task = await task_in(context, pair)
        gate = NativeGate(context)
        job = leader_job(pair, make_reports(pair, [1, 0]))
        answers: list[StoredJob] = []

        async def create() -> None:
            answers.append(await helper_job.create(context, task, job.body))

        with trio.fail_after(60):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(create)
                await gate.arrived()
                command = open_for_command(context.datastore.path, holder="a command", now=0)
                command.datastore.run_sync(delete_task, task.task_id, NOW, 300.0, discard=True)
                command.close()
                gate.open()
        assert outcomes(job, answers[0]) == bytes([ReportError.REPORT_DROPPED] * 2)
        assert await aggregated(context, task) == 0
