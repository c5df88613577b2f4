"""Rules C1 to C8: which reports a batch has, who may collect it, and how often."""

from __future__ import annotations

import secrets
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from pathlib import Path

import pytest
import trio

from dapd.collector import CollectionFailed
from dapd.collector import Query as SecondsQuery
from dapd.commits.batch_total import batch_total
from dapd.commits.collections import (
    BatchChangedError,
    CollectionRequest,
    Failed,
    advance_collection,
    create_collection,
    freeze_collection,
)
from dapd.commits.create_jobs import create
from dapd.commits.garbage import drop_chunks
from dapd.commits.leader_jobs import (
    Halves,
    Result,
    dissolve_job,
    finish_job,
    give_up_job,
    halve_job,
)
from dapd.datastore import Tx, batches, leader_jobs, leases
from dapd.datastore.leases import Lease
from dapd.driver import collection
from dapd.driver.collection import frozen_batch
from dapd.driver.step import Step
from dapd.errors import Abort
from dapd.gc.loop import GarbageCollector
from dapd.messages.collection import Query
from dapd.messages.common import BatchMode, Interval
from dapd.protocol.batches import time_bucket
from dapd.protocol.collect import FixCut, Freeze, Wait
from dapd.protocol.packing import Limits
from dapd.protocol.states import LeaderJobState, RangeState
from dapd.protocol.task import Instant, Task, TaskSettings
from dapd.reports import ReportError
from tests.clock import NOW, PRECISION, TIME
from tests.database_dump import everything_in
from tests.database_pair import (
    KEEP_MS,
    QUERY,
    DatabasePair,
    interval_query,
    leader_context,
    open_databases,
)
from tests.helper_harness import open_helper
from tests.leader_harness import honest, open_leader, problem
from tests.pair_harness import TaskHarness, open_pair, query_at
from tests.raw_http import Request, answer
from tests.scripted_server import ScriptedServer
from tests.task_pair import make_reports, task_pair


@pytest.fixture
async def pair(tmp_path: Path) -> AsyncIterator[DatabasePair]:
    """The databases of a time-interval task of at least three reports a batch."""
    async with open_databases(tmp_path) as databases:
        yield databases


def refusal(pair: DatabasePair, selected: Interval, query: Interval) -> str | None:
    """The error type of the Helper's refusal of this batch."""
    with pytest.raises(Abort) as caught:
        pair.serve(pair.share_request(selected, query).encode())
    return caught.value.type


async def test_c1_c4_the_helper_compares_the_whole_query_with_what_is_collected(
    pair: DatabasePair,
) -> None:
    """The selector is free, but the query would be collected with it, and a part of it is."""
    for time in (TIME, TIME + 1):
        pair.aggregate([1, 0, 1], time=time)
    pair.serve(pair.share_request(Interval(TIME, 1)).encode())
    free = Interval(TIME + 1, 1)
    assert refusal(pair, free, Interval(TIME, 2)) == "batchOverlap"
    pair.serve(pair.share_request(free).encode())


def _asked(task: Task) -> CollectionRequest:
    return CollectionRequest(task, secrets.token_bytes(16), QUERY.encode())


async def test_c3_an_upload_makes_the_collection_that_waits_for_it_due(tmp_path: Path) -> None:
    """It would look again by itself only in a minute."""
    pair = task_pair(min_batch_size=3)
    async with open_leader(tmp_path, pair, lambda _, __: answer(500)) as house:
        context, task, at = house.context, house.task, house.context.instant()
        job = await context.run(create_collection, _asked(task), context.sealer, at, KEEP_MS)
        [lease] = await house.lease()
        move = await context.run(advance_collection, lease, task, at, at.now + 60_000)
        assert move == Wait()
        assert await house.lease() == []
        await house.upload(1)
        assert [lease.pk for lease in await house.lease()] == [job.pk]


async def test_c1_an_empty_bucket_of_what_was_collected_takes_no_report(tmp_path: Path) -> None:
    """No row says so at either side: the interval does, at an upload, in a job and for a query."""
    async with open_pair(tmp_path) as (running, http):
        task = await running.new_task("count", min_batch_size=2)
        harness = TaskHarness(task, http)
        assert await harness.upload(harness.seal([1, 1], "first", at=TIME - 2)) == []
        result = await task.collect(query_at(TIME - 3, 3))
        assert result.report_count == 2
        late = harness.seal([1, 1], "late", at=TIME - 1)
        refused = [(report[:16], ReportError.BATCH_COLLECTED) for report in late]
        assert await harness.upload(late) == refused
        finished = await harness.start_job(late).run()
        assert finished.outcomes == bytes([ReportError.BATCH_COLLECTED] * 2)
        with pytest.raises(CollectionFailed) as caught:
            await task.collect(query_at(TIME - 1))
        assert caught.value.type == "batchOverlap"


async def test_c2_the_batch_is_closed_and_the_request_stored_before_it_is_sent(
    tmp_path: Path, nursery: trio.Nursery
) -> None:
    """When the Helper reads the request, a report for the batch comes too late. Its refusal, which
    is final, opens the batch again.
    """
    seen: list[object] = []

    def script(request: Request) -> bytes:
        stored = pair.job(job)
        seen.append((stored.state, stored.share_request == request.body, stored.sends))
        seen.append(pair.state_of(time_bucket(TIME)))
        return problem("invalidBatchSize")

    helper = ScriptedServer(script)
    url = await helper.serve(nursery)
    async with open_databases(tmp_path, helper_url=url) as pair, leader_context(pair) as context:
        pair.aggregate([1, 0, 1])
        job = pair.query(QUERY)
        peer = context.peers.at(pair.leader.configuration.helper_aggregator_endpoint)
        step = Step(pair.lease(job), pair.leader, trio.CapacityLimiter(1), peer)
        await collection.run(context, step)
        assert seen == [("frozen", True, 1), "closed"]
        assert (pair.job(job).state, pair.job(job).error) == ("failed", "invalidBatchSize")
        assert pair.state_of(time_bucket(TIME)) is None
    nursery.cancel_scope.cancel()


async def test_c2_a_job_that_commits_between_sum_and_freeze_is_not_left_out(
    pair: DatabasePair,
) -> None:
    """The sum was made in another transaction; the freeze refuses it, and the next look adds up
    both jobs.
    """
    pair.aggregate([1, 0, 1])
    job = pair.query(QUERY)
    lease = pair.lease(job)
    at = pair.clock.instant()
    move = pair.store.run_sync(advance_collection, lease, pair.leader, at, at.now)
    assert isinstance(move, Freeze)
    total = pair.store.read_sync(batch_total, pair.leader, pair.pair.sealer, move.batch)
    frozen = frozen_batch(pair.leader, pair.pair.sealer, job, move.batch, total)
    pair.aggregate([1])
    with pytest.raises(BatchChangedError):
        pair.store.run_sync(freeze_collection, lease, pair.leader, frozen, total.extent, at)
    pair.store.run_sync(leases.release, lease, at.now)
    pair.freeze(job)
    assert pair.job(job).n == 4


AT, LIMITS, LATER = Instant(NOW, NOW), Limits(1, 10, 0), NOW + 60_000
Deed = Callable[[Tx, Lease, Task], object]


def aggregate(tx: Tx, lease: Lease, _: Task) -> None:
    result = Result(bytes(1), [], answered=True, retry_at=lambda _: NOW)
    finish_job(tx, lease, leader_jobs.load(tx, lease), result, NOW)


def refuse_alone(tx: Tx, lease: Lease, _: Task) -> None:
    halves = Halves((bytes(16), bytes(16)), lambda _: NOW)
    assert not halve_job(tx, lease, leader_jobs.load(tx, lease), halves, "refused", NOW)


def give_up(tx: Tx, lease: Lease, _: Task) -> None:
    give_up_job(tx, lease.pk, LeaderJobState.LOST, "given up", NOW)


def take_out_of_its_batch(tx: Tx, lease: Lease, _: Task, now: int = NOW) -> None:
    dissolve_job(tx, lease, leader_jobs.load(tx, lease), now)


def refuse_without_a_job(tx: Tx, lease: Lease, task: Task) -> None:
    take_out_of_its_batch(tx, lease, task, LATER)
    create(tx, replace(task, expired_before=TIME + 1), LIMITS, AT, secrets.token_bytes)


def expire_without_a_job(tx: Tx, lease: Lease, task: Task) -> None:
    take_out_of_its_batch(tx, lease, task, LATER)
    assert drop_chunks(tx, task.task_pk, [1], TIME + 1, NOW).rows == 1


@pytest.mark.parametrize(
    "deed",
    [
        aggregate,
        refuse_alone,
        give_up,
        take_out_of_its_batch,
        refuse_without_a_job,
        expire_without_a_job,
    ],
)
async def test_c3_whatever_becomes_of_a_report_makes_the_collection_due(
    tmp_path: Path, deed: Deed
) -> None:
    """It has fixed its cut, and would look again only in a minute."""
    async with open_leader(tmp_path, task_pair(), lambda _, __: answer(500)) as house:
        context, task = house.context, house.task
        await house.upload(1)
        await house.create()
        [lease] = await house.lease()
        await context.run(create_collection, _asked(task), context.sealer, AT, KEEP_MS)
        [waiting] = await house.lease()
        move = await context.run(advance_collection, waiting, task, AT, LATER)
        assert isinstance(move, FixCut)
        assert await house.lease() == []
        await context.run(deed, lease, task)
        due = [each.pk for each in await house.lease() if each.due.kind == "collection"]
        assert due == [waiting.pk]


async def test_c3_what_comes_after_the_cut_delays_no_collection(pair: DatabasePair) -> None:
    """Uploads go on at each look; the cut stays, and the collection ends with what is before it."""
    job = pair.query(QUERY)
    first = pair.upload(3)
    assert pair.advance(job) == FixCut(first)
    for _ in range(5):
        pair.upload(3)
        assert pair.advance(job) == Wait()
    pair.aggregate([1, 0, 1])
    pair.decide(first)
    pair.freeze(job)
    assert pair.job(job).n == 3


@pytest.mark.parametrize("fault", ["batchOverlap", "invalidBatchSize", "batchMismatch"])
async def test_c4_the_first_fault_is_told_and_a_refusal_leaves_nothing(
    pair: DatabasePair, fault: str
) -> None:
    """Each request has all the later faults too; the honest one is served after it."""
    pair.aggregate([1, 0, 1])
    pair.aggregate([1, 0, 1], time=TIME + 1)
    pair.serve(pair.share_request(Interval(TIME + 1, 1)).encode())
    selected = {
        "batchOverlap": Interval(TIME + 1, 2),
        "invalidBatchSize": Interval(TIME - 1, 1),
        "batchMismatch": Interval(TIME, 1),
    }[fault]
    before = everything_in(pair.helper_store)
    wrong = replace(pair.share_request(selected), report_count=99, checksum=bytes(32))
    with pytest.raises(Abort) as caught:
        pair.serve(wrong.encode())
    assert caught.value.type == fault
    assert everything_in(pair.helper_store) == before
    pair.serve(pair.share_request(Interval(TIME, 1)).encode())


async def test_c5_of_two_collections_that_overlap_in_an_empty_bucket_the_later_one_fails(
    pair: DatabasePair,
) -> None:
    """Both wait; the freeze of one makes the other due, which waits for nothing any more."""
    first, second = pair.query(interval_query(TIME, 2)), pair.query(interval_query(TIME + 1, 2))
    pair.aggregate([1, 0, 1])
    assert pair.advance(second) == Wait()
    pair.freeze(first)
    assert pair.advance(second) == Failed(second.id)
    assert pair.job(second).error == "batchOverlap"


async def test_c6_a_rejected_report_leaves_its_place_to_another(tmp_path: Path) -> None:
    """The batch was full by the reports assigned to it, and is not by those aggregated."""
    pair = task_pair(batch_mode=BatchMode.LEADER_SELECTED, min_batch_size=4)
    async with open_leader(tmp_path, pair, honest) as house:
        await house.upload(4, tamper_with=[1])
        await house.create()
        await house.step()
        assert await house.aggregated() == 3
        await house.upload(2)
        await house.create()
        await house.step()
        assert await house.rows(
            "SELECT sum(n) FROM batch_shares GROUP BY bucket ORDER BY sum(n)"
        ) == [(1,), (4,)]


async def test_c6_a_helper_keeps_the_id_of_an_expired_batch_closed(tmp_path: Path) -> None:
    """Its Leader sent a job in time, but it comes after the batch has gone: both sides count its
    report as rejected, until it would be too old itself.
    """
    settings = TaskSettings(report_expiry_age=2 * PRECISION)
    pair = task_pair(batch_mode=BatchMode.LEADER_SELECTED, settings=settings)
    async with open_helper(tmp_path, pair) as house:
        batch_id = bytes(range(32))
        assert await house.outcomes(house.job(make_reports(pair, [1]), batch_id)) == bytes(1)
        house.clock.advance(3 * PRECISION)
        await GarbageCollector(house.context).collect()
        assert await house.aggregated() == 0
        house.task = house.context.tasks.all()[0]
        late = house.job(make_reports(pair, [1], times=[TIME + 3]), batch_id)
        assert await house.outcomes(late) == bytes([ReportError.BATCH_COLLECTED])


async def test_c6_a_batch_stays_while_another_job_may_still_fill_it(tmp_path: Path) -> None:
    """Two jobs are to fill it; the first one ends with all its reports rejected, and expires."""
    settings = TaskSettings(report_expiry_age=2 * PRECISION)
    pair = task_pair(batch_mode=BatchMode.LEADER_SELECTED, settings=settings, min_batch_size=9)
    async with open_leader(tmp_path, pair, honest) as house:
        await house.upload(2, tamper_with=[0, 1])
        await house.create()
        await house.step()
        house.later(2 * PRECISION)
        await house.upload(1, times=[TIME + 2])
        await house.create()
        assert await house.states() == {"finished": 1, "assigned": 1}
        [(batch_id,)] = await house.rows("SELECT batch_id FROM outstanding_batches")
        house.later(PRECISION)
        await GarbageCollector(house.context).collect()
        assert await house.states() == {"assigned": 1}
        await house.step()
        assert await house.rows("SELECT bucket FROM batch_shares") == [(batch_id,)]
        assert await house.rows("SELECT batch_id FROM outstanding_batches") == [(batch_id,)]


def test_c7_the_wire_counts_time_precisions_and_programs_count_seconds() -> None:
    """A query of an hour is an interval of one precision, wherever it begins in seconds."""
    configuration = replace(task_pair().configuration, time_precision=PRECISION)
    query = SecondsQuery.interval(TIME * PRECISION, 2 * PRECISION)
    assert query.request(configuration).query == Query(Interval(TIME, 2))
    with pytest.raises(ValueError, match="multiples of time_precision"):
        SecondsQuery.interval(TIME * PRECISION + 1, PRECISION).request(configuration)


async def test_c8_no_job_gets_reports_of_a_collected_batch_or_expired_ones(
    tmp_path: Path,
) -> None:
    """They were accepted while the batch was open and its time was not over."""
    settings = TaskSettings(report_expiry_age=2 * PRECISION)
    pair = task_pair(settings=settings)
    async with open_leader(tmp_path, pair, lambda _, __: answer(500)) as house:
        await house.upload(6, times=[TIME - 2, TIME - 1, TIME - 1, TIME, TIME, TIME])

        def collect(tx: Tx) -> None:
            hour = time_bucket(TIME - 1), time_bucket(TIME)
            pk, state = house.task.task_pk, RangeState.COLLECTED
            batches.close(tx, pk, *hour, state=state, collection_pk=None)

        await house.context.run(collect)
        house.later(PRECISION)
        await house.create()
        assert await house.rows("SELECT n FROM aggregation_jobs") == [(3,)]
        assert await house.counters() == {
            "upload_accepted": 6,
            "aggregate_report_dropped": 1,
            "aggregate_batch_collected": 2,
        }
