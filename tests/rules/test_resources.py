"""Rules A1 to A11: what a resource is, who may have it, and for how long."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import pytest
import trio
import trio.testing

from dapd.commits.collections import delete_collection, refuse_collection
from dapd.commits.helper_jobs import delete_aggregation_job
from dapd.datastore import Tx, batches, collections, watermarks
from dapd.datastore.helper_jobs import StoredJob
from dapd.errors import Abort
from dapd.gc.loop import GarbageCollector
from dapd.messages.aggregation import AggregationJobContinueHead
from dapd.messages.common import BatchMode, Interval, MediaType
from dapd.protocol.batches import time_bucket
from dapd.protocol.states import RangeState
from dapd.reports import ReportError
from tests.clock import TIME
from tests.contexts import NativeGate
from tests.database_dump import everything_in
from tests.database_pair import NEXT_BATCH, QUERY, open_databases
from tests.gc.row_counts import rebuilt_replay_index
from tests.helper_harness import open_helper
from tests.leader_harness import helper_response, open_leader, ready
from tests.pair_harness import query_at
from tests.paths.test_http_surface import Surface, surface
from tests.raw_http import Request, answer, ask, exchange, parse, request
from tests.scripted_server import ScriptedServer
from tests.task_pair import TaskPair, make_reports, report_ids, task_pair

Mode = Literal["sync", "async"]
REPLAYED = ReportError.REPORT_REPLAYED


async def test_a1_an_identical_job_is_found_before_its_reports_are_replays(tmp_path: Path) -> None:
    """All its ids are admitted, its batch is collected, and there is no room for new work. Once it
    is deleted, the same request makes another job.
    """
    async with open_helper(tmp_path, task_pair()) as house:
        job = house.job(make_reports(house.pair, [1, 1]))
        first = await house.create(job)
        await house.collect(time_bucket(TIME), time_bucket(TIME + 1))
        limit, house.context.work.limit = house.context.work.limit, 0
        assert await house.create(job) == first
        house.context.work.limit = limit
        assert job.finish(first.response or b"") == bytes(2)
        assert await house.context.run(delete_aggregation_job, house.task.task_pk, first.id)
        again = await house.create(job)
        assert again.id != first.id
        assert 0 not in job.finish(again.response or b"\0")


async def test_a1_a_job_below_a_mark_that_is_ahead_of_the_clock_is_found_too(
    tmp_path: Path,
) -> None:
    """The task was deleted and added again: the Helper drops all reports, once for one request."""
    async with open_helper(tmp_path, task_pair()) as house:

        def raise_mark(tx: Tx) -> None:
            watermarks.raise_expired_before(tx, house.task.task_pk, TIME + 5)

        await house.context.run(raise_mark)
        await house.context.tasks.reload()
        house.task = house.context.tasks.all()[0]
        job = house.job(make_reports(house.pair, [1]))
        first = await house.create(job)
        assert job.finish(first.response or b"") == bytes([ReportError.REPORT_DROPPED])
        assert await house.create(job) == first


async def test_a1_an_identical_share_request_is_found_before_overlap_and_size(
    tmp_path: Path,
) -> None:
    """The first one has closed the batch, whose size has changed since."""
    async with open_databases(tmp_path) as pair:
        pair.aggregate([1, 0, 1])
        body = pair.share_request(Interval(TIME, 1)).encode()
        served = pair.serve(body)
        pair.aggregate([1])
        assert pair.serve(body) == served


async def test_a1_an_identical_query_is_found_unless_its_job_has_failed(tmp_path: Path) -> None:
    """A failed job answers GET, but a new POST of the same query is another job."""
    async with open_databases(tmp_path) as pair:
        pair.aggregate([1, 0, 1])
        job = pair.query(QUERY)
        lease = pair.freeze(job)
        assert pair.query(QUERY).id == job.id
        pair.store.run_sync(refuse_collection, lease, pair.leader, "batchMismatch", "they differ")
        assert pair.query(QUERY).id != job.id


async def test_a2_work_outlives_its_client_and_an_identical_request_joins_it(
    tmp_path: Path,
) -> None:
    """The first client hangs up while its job is verified; the second asks for the same job."""
    async with open_helper(tmp_path, task_pair()) as house:
        job = house.job(make_reports(house.pair, [1, 1]))
        gate = NativeGate(house.context)
        answers: list[StoredJob] = []

        async def ask_again() -> None:
            answers.append(await house.create(job))

        async with trio.open_nursery() as client:
            client.start_soon(house.create, job)
            await gate.arrived()
            client.cancel_scope.cancel()
        async with trio.open_nursery() as client:
            client.start_soon(ask_again)
            await trio.testing.wait_all_tasks_blocked()
            assert len(house.context.work) == 1
            gate.open()
        assert job.finish(answers[0].response or b"") == bytes(2)
        assert await house.aggregated() == 2


@pytest.mark.parametrize("mode", ["sync", "async"])
async def test_a3_a_fault_at_the_end_of_a_request_leaves_nothing_of_its_beginning(
    tmp_path: Path, mode: Mode
) -> None:
    """Its last report is cut off, or has the id of the first one."""
    async with open_helper(tmp_path, task_pair(), mode=mode) as house:
        job = house.job(make_reports(house.pair, [1, 0, 1]))
        before = everything_in(house.context.datastore)
        for body in (job.body[:-1], job.body + job.start.verify_inits):
            with pytest.raises(Abort) as caught:
                await house.post(body)
            assert caught.value.type == "invalidMessage"
        assert everything_in(house.context.datastore) == before
        assert len(house.context.datastore.replay) == 0
        await house.create(job)
        await house.drive()
        assert await house.outcomes(job) == bytes(3)


async def test_a4_not_ready_is_empty_and_a_failure_is_read_by_get(tmp_path: Path) -> None:
    """POST and GET of the same resource are alike, and an aggregation job alone has a step."""
    async with surface(tmp_path, mode="async") as s:
        job = s.harness.start_job(s.harness.seal([1], "job"))
        query = query_at().request(s.harness.task.files.client.configuration).encode()
        made = await s.create("aggregation_jobs", job.request)
        waits = await s.create("collection_jobs", query)
        again = await s.ask("GET", waits.headers["location"])
        for reply in (made, waits, again):
            assert (reply.status, reply.body) == (200, b"")
            assert reply.headers["retry-after"].isdecimal()
        assert made.headers["location"].endswith("?step=0")
        assert waits.headers["location"] == again.headers["location"]
        assert "step" not in waits.headers["location"]
        await close_at_leader(s)
        while not (failed := await s.ask("GET", waits.headers["location"])).body:
            await trio.lowlevel.checkpoint()
        assert (failed.status, failed.error) == (400, "batchOverlap")


async def close_at_leader(s: Surface) -> None:
    """Close the hour of ``TIME`` for a collection that the waiting one then meets (C5)."""
    context = s.pair.leader.context
    task_pk = await s.harness.task_pk(s.pair.leader)

    def close(tx: Tx) -> None:
        hour = time_bucket(TIME), time_bucket(TIME + 1)
        batches.close(tx, task_pk, *hour, state=RangeState.COLLECTED, collection_pk=None)
        collections.touch(tx, task_pk, context.now())

    await context.run(close)
    context.jobs.ring()


async def test_a5_a_location_is_used_within_its_origin_alone(
    tmp_path: Path, nursery: trio.Nursery
) -> None:
    """GET has a step, DELETE none; the other origin, which two answers name, is sent nothing."""
    other = ScriptedServer(lambda _: answer(200))
    elsewhere = await other.serve(nursery)

    def script(pair: TaskPair, request: Request) -> bytes:
        match len(house.helper.requests):
            case 1:
                return answer(307, Location=f"{elsewhere}/jobs")
            case 2:
                return answer(308, Location="/helper/moved")
            case 3:
                assert request.target == "/helper/moved"
                return answer(201, Location="jobs/7", Retry_After="0")
            case 4:
                assert (request.method, request.target) == ("GET", "/helper/jobs/7?step=0")
                body = helper_response(pair, house.helper.requests[2].body)
                return ready(body, Location=f"{elsewhere}/jobs/7")
            case _:
                assert (request.method, request.target) == ("DELETE", "/helper/jobs/7")
                return answer(204)

    async with open_leader(tmp_path, task_pair(), script) as house:
        await house.upload(2)
        await house.create()
        for _ in range(3):
            await house.step()
            house.later()
        assert await house.aggregated() == 2
        assert len(house.helper.requests) == 5
    assert other.requests == []
    nursery.cancel_scope.cancel()


async def test_a6_what_was_deleted_is_still_replayed_and_collected(tmp_path: Path) -> None:
    """The job is gone with its answer; its reports and the collected interval are not free, after
    a restart neither.
    """
    async with open_helper(tmp_path, task_pair()) as house:
        ids = report_ids(2)
        job = house.job(make_reports(house.pair, [1, 1], ids=ids))
        first = await house.create(job)
        assert await house.context.run(delete_aggregation_job, house.task.task_pk, first.id)
        path, task_pk = house.context.datastore.path, house.task.task_pk
        assert rebuilt_replay_index(path, task_pk, ids) == (2, b"\1\1")
        assert await house.outcomes(job) == bytes([REPLAYED, REPLAYED])
        assert await house.aggregated() == 2
    async with open_databases(tmp_path) as pair:
        pair.aggregate([1, 0, 1])
        collected = pair.query(QUERY)
        lease = pair.freeze(collected)
        assert pair.store.run_sync(collections.note_send, lease)
        at = pair.clock.instant()
        assert pair.store.run_sync(delete_collection, pair.leader, collected.id, at)
        with pytest.raises(Abort) as caught:
            pair.query(QUERY)
        assert caught.value.type == "batchOverlap"


async def test_a7_an_answer_stays_while_its_leader_may_ask_for_it_again(tmp_path: Path) -> None:
    """Of two buckets, one is collected: the Leader may still lack the answer of the other."""
    async with open_helper(tmp_path, task_pair()) as house:
        job = house.job(make_reports(house.pair, [1, 0], times=[TIME - 1, TIME]))
        first = await house.create(job)
        for time, kept in ((None, True), (TIME - 1, True), (TIME, False)):
            if time is not None:
                await house.collect(time_bucket(time), time_bucket(time + 1))
            await GarbageCollector(house.context).collect()
            assert (await house.create(job) == first) is kept
        assert len(house.context.datastore.replay) == 2


async def test_a8_a_batch_that_was_frozen_for_a_deleted_job_is_no_other_jobs(
    tmp_path: Path,
) -> None:
    """The Collector deletes its job while the Helper may be asked, and queries again."""
    async with open_databases(tmp_path, mode=BatchMode.LEADER_SELECTED) as pair:
        first, second = pair.open_batch(), pair.open_batch()
        for batch_id in (first, second):
            pair.aggregate([1, 1, 1], batch_id=batch_id)
        job = pair.query(NEXT_BATCH)
        pair.freeze(job)
        assert pair.query(NEXT_BATCH).id == job.id
        at = pair.clock.instant()
        assert pair.store.run_sync(delete_collection, pair.leader, job.id, at)
        following = pair.query(NEXT_BATCH)
        pair.freeze(following)
        assert [pair.job(each).lo for each in (job, following)] == [first, second]


async def test_a9_a_wrong_token_is_refused_before_the_body_is_sent(tmp_path: Path) -> None:
    """It is the other party's token. The configurations of HPKE need none."""
    async with surface(tmp_path) as s:
        for resource in ("aggregation_jobs", "aggregate_shares", "collection_jobs"):
            other = "aggregation_jobs" if resource == "collection_jobs" else "collection_jobs"
            headers = s.headers(other) | {"Content-Length": "5000"}
            head = request("POST", s.path(resource), headers)
            assert parse(await exchange(s.side(resource).port, head)).status == 401
        for side in (s.pair.leader, s.pair.helper):
            assert (await ask(side.port, "GET", "/hpke_config")).status == 200
        assert await s.harness.upload(s.harness.seal([1], "no token")) == []


async def test_a10_a_media_type_is_its_type_and_its_message(tmp_path: Path) -> None:
    """Another parameter and another case don't matter; a type that isn't DAP's has no URN."""
    async with surface(tmp_path) as s:
        job = s.harness.start_job(s.harness.seal([1], "job"))
        name = MediaType.AGGREGATION_JOB_INIT_REQ.value
        wrong = MediaType.AGGREGATE_SHARE_REQ.value
        path, port = s.path("aggregation_jobs"), s.pair.helper.port
        for content, status in (
            (wrong, 415),
            (name.partition(";")[0], 415),
            ("text/plain; message=aggregation-job-init-req", 415),
            (f"{name}; charset=utf-8", 200),
            (name.replace(";", "; version=18; "), 200),
            (name.upper(), 200),
        ):
            headers = s.headers("aggregation_jobs", content)
            reply = await ask(port, "POST", path, headers, job.request)
            assert reply.status == status, content
            if status == 415:
                assert reply.error is None


async def test_a11_a_job_that_is_not_finished_can_not_be_continued_either(tmp_path: Path) -> None:
    """The request is valid otherwise; the job goes on, and its answer is as it would have been."""
    async with surface(tmp_path, mode="async") as s:
        job = s.harness.start_job(s.harness.seal([1, 0], "job"))
        path = (await s.create("aggregation_jobs", job.request)).headers["location"]
        body = AggregationJobContinueHead(1).encode()
        content = MediaType.AGGREGATION_JOB_CONTINUE_REQ
        refused = await s.ask("POST", path.partition("?")[0], content, body)
        assert refused.error == "stepMismatch"
        assert (await job.run()).outcomes == bytes(2)
