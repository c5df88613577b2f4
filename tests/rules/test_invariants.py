"""Invariants I1 to I9: what holds at every moment, by the interleaving that would break it."""

from __future__ import annotations

import threading
from pathlib import Path

import trio
import trio.testing

from dapd.crypto import hash_token
from dapd.datastore import leases
from dapd.datastore.helper_jobs import StoredJob
from dapd.driver.dispatcher import Dispatcher
from dapd.driver.step import Step
from dapd.protocol.batches import time_bucket
from dapd.reports import ReportError, UploadAnswer
from dapd.runtime.context import Context
from tests.clock import TIME
from tests.contexts import NativeGate, make_config, open_context
from tests.datastore.test_leases import add_job
from tests.helper_harness import open_helper
from tests.leader_harness import honest, open_leader, problem
from tests.raw_http import Request, answer
from tests.task_pair import (
    AGGREGATOR_TOKEN,
    COLLECTOR_TOKEN,
    SEALING_KEY,
    LeaderJob,
    TaskPair,
    make_reports,
    task_pair,
)


async def test_i1_a_report_in_two_jobs_that_are_verified_at_once_counts_once(
    tmp_path: Path,
) -> None:
    """Neither finds it in the replay index when its verification begins."""
    async with open_helper(tmp_path, task_pair()) as house:
        reports = make_reports(house.pair, [1, 1, 1])
        jobs = house.job(reports[:2]), house.job(reports[1:])
        gate = NativeGate(house.context)
        outcomes: list[bytes] = []

        async def send(job: LeaderJob) -> None:
            outcomes.append(await house.outcomes(job))

        async with trio.open_nursery() as nursery:
            for job in jobs:
                nursery.start_soon(send, job)
            await trio.testing.wait_all_tasks_blocked()
            gate.open()
        assert sorted(b"".join(outcomes)) == [0, 0, 0, ReportError.REPORT_REPLAYED]
        assert await house.aggregated() == 3


async def test_i2_an_upload_is_answered_after_its_commit(tmp_path: Path) -> None:
    """Another transaction holds the writer: the Client hears nothing, though all is opened."""
    async with open_leader(tmp_path, task_pair(), honest) as house:
        let_go = threading.Event()
        answers: list[UploadAnswer] = []

        async def upload() -> None:
            body = b"".join(make_reports(house.pair, [1, 1]))
            answers.append(await house.context.uploads.submit(house.task, body))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(house.context.run, lambda _: let_go.wait())
            nursery.start_soon(upload)
            opened = "dapd_native_seconds_count", {"call": "open_uploads"}
            while not house.context.metrics.registry.get_sample_value(*opened):
                await trio.lowlevel.checkpoint()
            await trio.testing.wait_all_tasks_blocked()
            assert answers == []
            assert await house.counters() == {}
            let_go.set()
        assert [each.upload_errors for each in answers] == [b""]
        assert await house.counters() == {"upload_accepted": 2}


async def test_i3_a_successor_sends_the_bytes_that_its_predecessor_stored(
    tmp_path: Path,
) -> None:
    """The Leader's process is killed while the Helper works on the request."""
    killed = trio.CancelScope()

    def script(pair: TaskPair, request: Request) -> bytes:
        if len(house.helper.requests) == 1:
            killed.cancel()
            return b""
        return honest(pair, request)

    async with open_leader(tmp_path, task_pair(), script) as house:
        await house.upload(3)
        await house.create()
        with killed:
            await house.step()
        [(stored,)] = await house.rows("SELECT request FROM job_bodies")
        await house.context.run(leases.clear_all, house.context.now())
        await house.step()
        sent = [request.body for request in house.helper.requests if request.method == "POST"]
        assert sent == [stored, stored]
        assert await house.aggregated() == 3


async def test_i4_no_number_of_errors_ends_a_job(tmp_path: Path) -> None:
    """A Helper that is away for days loses no report."""
    failures = [b"", answer(500), answer(503), answer(429), answer(502, b"<html>")] * 20

    def script(pair: TaskPair, request: Request) -> bytes:
        return failures.pop() if failures else honest(pair, request)

    async with open_leader(tmp_path, task_pair(), script) as house:
        await house.upload(2)
        await house.create()
        for _ in range(100):
            assert await house.step() == 1
            house.later(3600)
        assert await house.states() == {"stored": 1}
        await house.step()
        assert await house.counters() == {"upload_accepted": 2, "aggregate_finished": 2}


async def test_i5_a_job_that_waits_for_its_helper_is_back_in_the_datastore(
    tmp_path: Path,
) -> None:
    """It has a time to run at; neither a slot, nor a permit, nor a lease waits with it."""

    def script(pair: TaskPair, request: Request) -> bytes:
        return answer(201, Location="/helper/jobs/1", Retry_After="7")

    async with open_leader(tmp_path, task_pair(), script) as house:
        await house.upload(2)
        await house.create()
        await house.step()
        now = house.context.now()
        assert await house.rows("SELECT state, run_at, lease_token FROM aggregation_jobs") == [
            ("polling", now + 7000, None)
        ]
        assert house.slots.borrowed_tokens == 0
        peer = house.context.peers.at(house.task.configuration.helper_aggregator_endpoint)
        assert peer.exchanges == 0
        assert await house.lease() == []


async def test_i6_rejected_reports_are_answered_in_their_places(tmp_path: Path) -> None:
    """One is a replay, one has a bad proof; good ones are before, between and behind them."""
    async with open_helper(tmp_path, task_pair()) as house:
        known, bad = make_reports(house.pair, [1, 1], tamper_with=[1])
        first, second, third = make_reports(house.pair, [1, 0, 1])
        assert await house.outcomes(house.job([known])) == bytes(1)
        job = house.job([first, known, second, bad, third])
        expected = [0, ReportError.REPORT_REPLAYED, 0, ReportError.VDAF_VERIFY_ERROR, 0]
        assert list(await house.outcomes(job)) == expected


async def test_i7_a_batch_that_is_collected_while_a_job_is_verified_gets_none_of_it(
    tmp_path: Path,
) -> None:
    """The bucket was open when the job came. Its reports of the next hour count."""
    async with open_helper(tmp_path, task_pair()) as house:
        job = house.job(make_reports(house.pair, [1, 1, 1], times=[TIME - 1, TIME, TIME - 1]))
        gate = NativeGate(house.context)
        answers: list[StoredJob] = []

        async def send() -> None:
            answers.append(await house.create(job))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(send)
            await gate.arrived()
            await house.collect(time_bucket(TIME - 1), time_bucket(TIME))
            gate.open()
        outcomes = job.finish(answers[0].response or b"")
        assert sorted(outcomes) == [0] + [ReportError.BATCH_COLLECTED] * 2
        assert await house.aggregated() == 1
        assert len(house.context.datastore.replay) == 1


async def test_i8_what_the_grace_period_cuts_off_is_due_for_the_next_process(
    tmp_path: Path,
) -> None:
    """Draining begins nothing new; a step that does not end is cancelled, which is no crash."""
    pair, begun = task_pair(), trio.Event()

    async def never_end(context: Context, step: Step) -> None:
        begun.set()
        await trio.sleep_forever()

    async with open_context(make_config(tmp_path), (pair.leader, pair)) as context:
        task_pk = context.tasks.all()[0].task_pk
        await context.run(add_job, task_pk)
        dispatcher = Dispatcher(context, {("aggregation", "leader"): never_end}, 1)
        async with trio.open_nursery() as daemon:
            daemon.start_soon(dispatcher.run)
            await begun.wait()
            context.drain()
            await context.run(add_job, task_pk)
            context.jobs.ring()
            await trio.testing.wait_all_tasks_blocked()
            _, computing = await context.read(leases.held, context.now())
            assert computing == 1
            daemon.cancel_scope.cancel()
        found, _ = await context.run(leases.lease_due, context.now(), list)
        assert sorted((lease.due.pk, lease.due.crashes) for lease in found) == [(1, 0), (2, 0)]


async def test_i9_no_secret_is_in_a_file_or_in_a_repr(tmp_path: Path) -> None:
    """While a job is under way, whose Helper echoes the token: keys, tokens and shares."""

    def script(pair: TaskPair, request: Request) -> bytes:
        return problem(request.headers["authorization"], 403)

    async with open_leader(tmp_path, task_pair(), script) as house:
        await house.upload(2)
        await house.create()
        await house.step()
        assert await house.states() == {"stored": 1}
        secrets = {
            "aggregator token": AGGREGATOR_TOKEN.encode(),
            "collector token": COLLECTOR_TOKEN.encode(),
            "verification key": house.task.verify_key,
            "HPKE key": house.pair.leader_key.private_key,
            "sealing key": SEALING_KEY,
        }
        files = [each for each in tmp_path.iterdir() if each.is_file()]
        written = b"".join(each.read_bytes() for each in files)
        assert hash_token(COLLECTOR_TOKEN) in written, "the files are those of the database"
        said = repr([house.task, house.pair.leader_key, house.context.sealer]).encode()
        for name, secret in secrets.items():
            assert secret not in written, name
            assert secret not in said, name
            assert repr(secret).encode() not in said, name
