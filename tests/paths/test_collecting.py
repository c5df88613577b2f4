"""Collections while everything else goes on, and batches one after another, by a real pair."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

import pytest
import trio

from dapd.collector import CollectionFailed, Collector, Query
from dapd.http import Refused, resource_url
from dapd.messages.collection import AggregateShareReq, BatchSelector, CollectionJobReq
from dapd.messages.collection import Query as QueryMessage
from dapd.messages.common import Interval, MediaType
from dapd.protocol.task import TaskSettings
from dapd.reports import ReportError
from dapd.testing import PairTask
from tests.clock import PRECISION, TIME
from tests.pair_harness import TaskHarness, open_pair, query_at, until

STREAMS = 3
NEXT = Query.next_batch()
_WAITING = "SELECT 1 FROM report_chunks WHERE state = 'waiting'"


class Stopped(Exception):
    """A program that ends between the result and its use."""


async def interrupted(task: PairTask) -> object:
    """The next batch's value, got by a program that ends before it tells the Leader so."""
    value: object = None
    with suppress(Stopped):
        async with (
            Collector(task.files.collector) as collector,
            collector.collect(NEXT) as result,
        ):
            value = result.value
            raise Stopped
    return value


async def error_of(task: PairTask, query: Query) -> str | None:
    """What the Leader says against a query."""
    with pytest.raises(CollectionFailed) as failed:
        await task.collect(query)
    return failed.value.type


def seconds(start: int, duration: int) -> Query:
    return Query.interval(start * PRECISION, duration * PRECISION)


@pytest.mark.parametrize("mode", ["sync", "async"])
async def test_uploads_stream_on_while_their_interval_is_collected(
    tmp_path: Path, mode: str
) -> None:
    """C1, C2, C3, C8, I7: the collection ends, both Aggregators agree, what is late is refused as
    ``batch_collected``, and every accepted report is accounted for.
    """
    async with open_pair(tmp_path, helper={"helper": {"mode": mode}}) as (pair, http):
        task = await pair.new_task("count", min_batch_size=20)
        harness = TaskHarness(task, http)
        started, accepted = trio.Event(), 0

        async def stream(name: int) -> None:
            """Upload until the interval is closed."""
            nonlocal accepted
            for n in range(10_000):
                refused = await harness.upload(harness.seal([1] * 3, f"stream {name} {n}"))
                accepted += 3 - len(refused)
                if refused:
                    assert {error for _, error in refused} == {ReportError.BATCH_COLLECTED}
                    return
                if accepted >= 20:
                    started.set()

        async with trio.open_nursery() as nursery:
            for name in range(STREAMS):
                nursery.start_soon(stream, name)
            await started.wait()
            # From an hour before, in which there is no report at all.
            result = await task.collect(seconds(TIME - 1, 2))
        assert result.value == result.report_count >= 20

        async def all_decided() -> bool:
            return await pair.leader.context.read(lambda tx: tx.one(_WAITING)) is None

        await until(all_decided)
        counted = await harness.counters(pair.leader)
        assert counted["aggregate_finished"] == result.report_count
        assert counted["upload_accepted"] == accepted
        assert accepted == result.report_count + counted.get("aggregate_batch_collected", 0)
        assert await harness.counters(pair.helper) == {"aggregate_finished": result.report_count}
        await closed_everywhere(task, harness)


async def closed_everywhere(task: PairTask, harness: TaskHarness) -> None:
    """The two hours up to ``TIME`` are collected, the empty one too; before them nothing is."""
    pair = harness.pair
    for hour in (TIME - 1, TIME):
        late = harness.seal([1], f"late {hour}", at=hour)
        assert [error for _, error in await harness.upload(late)] == [ReportError.BATCH_COLLECTED]
        judged = await harness.start_job(harness.seal([1], f"behind {hour}", at=hour)).run()
        assert judged.outcomes == bytes([ReportError.BATCH_COLLECTED])
    for query in (seconds(TIME - 1, 1), seconds(TIME, 1), seconds(TIME - 2, 2), seconds(0, TIME)):
        assert await error_of(task, query) == "batchOverlap"
    asked = CollectionJobReq(QueryMessage(Interval(TIME - 1, 1)))
    request = AggregateShareReq(asked, BatchSelector(Interval(TIME - 1, 1)), 0, bytes(32))
    answered = await harness.http.create(
        resource_url(pair.helper.url, "tasks", harness.id_text, "aggregate_shares"),
        request.encode(),
        MediaType.AGGREGATE_SHARE_REQ,
        task.files.leader.aggregator_auth_token,
    )
    assert isinstance(answered, Refused)
    assert answered.type == "batchOverlap"
    early = harness.seal([1] * 20, "another batch", at=TIME - 2)
    assert await harness.upload(early) == []
    assert (await task.collect(seconds(TIME - 2, 1))).value == 20


@pytest.mark.parametrize("mode", ["sync", "async"])
async def test_a8_three_leader_selected_batches_in_a_row(tmp_path: Path, mode: str) -> None:
    """Each query takes the next batch; asked again before DELETE, it gets the same one (A8)."""
    async with open_pair(tmp_path, helper={"helper": {"mode": mode}}) as (pair, http):
        task = await pair.new_task(
            "sum:max_measurement=100", batch_mode="leader-selected", min_batch_size=3
        )
        harness = TaskHarness(task, http)
        for n, value in enumerate((1, 10, 100)):
            await harness.upload(harness.seal([value] * 3, f"batch {n}"))
            for _ in range(2):
                assert await interrupted(task) == 3 * value
            assert (await task.collect(NEXT)).value == 3 * value
        assert (await harness.counters(pair.helper)) == {"aggregate_finished": 9}


async def test_c6_leader_selected_batches_fill_up_under_a_stream(tmp_path: Path) -> None:
    """Queries wait for their batch while uploads go on; no report is in two batches (C6, I1)."""
    async with open_pair(tmp_path) as (pair, http):
        task = await pair.new_task(
            "count",
            batch_mode="leader-selected",
            min_batch_size=5,
            settings=TaskSettings(batch_target_size=10),
        )
        harness = TaskHarness(task, http)
        done = trio.Event()
        accepted = 0

        async def stream() -> None:
            nonlocal accepted
            while not done.is_set():
                accepted += 2
                assert await harness.upload(harness.seal([1] * 2, f"stream {accepted}")) == []

        async with trio.open_nursery() as nursery:
            nursery.start_soon(stream)
            results = [await task.collect(NEXT) for _ in range(3)]
            done.set()
        collected = sum(result.report_count for result in results)
        assert all(result.value == result.report_count >= 5 for result in results)
        while accepted - collected >= 5:
            last = await task.collect(NEXT)
            collected += last.report_count
            assert last.value == last.report_count
        assert 0 <= accepted - collected < 5
        for side in (pair.leader, pair.helper):
            assert (await harness.counters(side))["aggregate_finished"] >= collected


async def test_c6_two_queries_never_get_the_same_batch(tmp_path: Path) -> None:
    """Both are one job while it lives (A8); an interval that fails leaves the others alone (C5)."""
    async with open_pair(tmp_path) as (pair, http):
        task = await pair.new_task("count", min_batch_size=2)
        harness = TaskHarness(task, http)
        errors: list[str | None] = []
        values: list[object] = []

        async def collect(query: Query) -> None:
            try:
                values.append((await task.collect(query)).value)
            except CollectionFailed as failed:
                errors.append(failed.type)

        async with trio.open_nursery() as nursery:
            for query in (query_at(), query_at(), seconds(TIME - 1, 2)):
                nursery.start_soon(collect, query)
            await harness.upload(harness.seal([1, 1], "both"))
        # Either interval may win; the two equal queries are one.
        assert (values, errors) in (([2, 2], ["batchOverlap"]), ([2], ["batchOverlap"] * 2))
