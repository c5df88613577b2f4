"""A network that loses answers, and a Helper that takes its time, between a real pair."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import trio

from dapd.http import DapHttp
from dapd.testing import Pair
from tests.pair_harness import TaskHarness, open_pair, query_at
from tests.raw_http import Request, answer
from tests.scripted_proxy import Action, Answer, Cut, Hold, LoseAnswer, Pass, ScriptedProxy

IMPATIENT = {
    "retry_min": 0.001,
    "poll_min": 0.001,
    "retry_max": 0.01,
    "max_wait": 0,
    "min_job_size": 1,
}
RESOURCES = {"aggregation_jobs", "aggregate_shares"}


@asynccontextmanager
async def proxied_pair(
    directory: Path, mode: str, **leader: Any
) -> AsyncIterator[tuple[Pair, DapHttp, ScriptedProxy]]:
    """A pair, and a proxy that tasks can name as their Helper."""
    tables = {"leader": IMPATIENT | leader}
    async with (
        open_pair(directory, leader=tables, helper={"helper": {"mode": mode}}) as (pair, http),
        trio.open_nursery() as nursery,
    ):
        proxy = ScriptedProxy(pair.helper.port)
        await proxy.serve(nursery)
        yield pair, http, proxy
        # The daemons are stopped before the proxy is: nothing of theirs is cut by the test's end.
        for side in (pair.leader, pair.helper):
            await side.stop()
        nursery.cancel_scope.cancel()


def losing(resource: str, method: str, times: int, how: Action) -> Any:
    """A script that disturbs the first exchanges of a kind, and passes everything else."""
    left = times

    def script(request: Request) -> Action:
        nonlocal left
        if request.method == method and f"/{resource}" in request.target and left:
            left -= 1
            return how
        return Pass()

    return script


@pytest.mark.parametrize("resource", sorted(RESOURCES))
@pytest.mark.parametrize("mode", ["sync", "async"])
async def test_a_lost_answer_is_asked_for_again_with_the_same_bytes(
    tmp_path: Path, mode: str, resource: str
) -> None:
    """I3, I4, A1: the Helper has committed, its answer is lost; the retry is byte-identical and
    finds what the first one made; the result is exact.
    """
    async with proxied_pair(tmp_path, mode) as (pair, http, proxy):
        proxy.script = losing(resource, "POST", 2, LoseAnswer())
        task = await pair.new_task("histogram:length=3", helper_aggregator_endpoint=proxy.url)
        harness = TaskHarness(task, http)
        assert await harness.upload(harness.seal([0, 1, 1, 2], "good")) == []
        result = await task.collect(query_at())
        assert (result.value, result.report_count) == ([1, 2, 1], 4)

        sent = proxy.of("POST", resource)
        assert [type(each.action) for each in sent] == [LoseAnswer, LoseAnswer, Pass]
        assert len({each.request.body for each in sent}) == 1
        assert len({job_of(each.answer) for each in sent}) == 1
        assert (await harness.counters(pair.helper)) == {"aggregate_finished": 4}
        assert (await harness.counters(pair.leader))["aggregate_finished"] == 4


async def test_a_lost_answer_to_a_poll_is_asked_for_again(tmp_path: Path) -> None:
    """I4, A4: the Location goes on giving the finished job until the Leader deletes it (A7)."""
    async with proxied_pair(tmp_path, "async") as (pair, http, proxy):
        proxy.script = losing("aggregation_jobs", "GET", 2, LoseAnswer())
        task = await pair.new_task("sum:max_measurement=9", helper_aggregator_endpoint=proxy.url)
        harness = TaskHarness(task, http)
        await harness.upload(harness.seal([4, 5], "good"))
        assert (await task.collect(query_at())).value == 9
        await proxy.until(lambda: bool(proxy.of("DELETE", "aggregation_jobs")))
        [posted] = proxy.of("POST", "aggregation_jobs")
        polls = proxy.of("GET", "aggregation_jobs")
        assert len(polls) >= 3
        assert {each.request.target for each in polls} == {job_of(posted.answer) + "?step=0"}
        [deleted] = proxy.of("DELETE", "aggregation_jobs")
        assert deleted.request.target == job_of(posted.answer)


async def test_requests_that_never_arrive_are_sent_again(tmp_path: Path) -> None:
    """I4, E1: connections that end before the Helper has seen anything lose nothing."""
    async with proxied_pair(tmp_path, "sync") as (pair, http, proxy):
        cuts = {"aggregation_jobs": 3, "aggregate_shares": 3}

        def script(request: Request) -> Action:
            for resource, left in cuts.items():
                if request.target.endswith(resource) and left:
                    cuts[resource] -= 1
                    return Cut()
            return Pass()

        proxy.script = script
        task = await pair.new_task("count", helper_aggregator_endpoint=proxy.url)
        harness = TaskHarness(task, http)
        await harness.upload(harness.seal([1, 1, 0], "good"))
        assert (await task.collect(query_at())).value == 2
        for resource in cuts:
            sent = proxy.of("POST", resource)
            assert len(sent) == 4
            assert len({each.request.body for each in sent}) == 1


async def test_a_helper_that_is_processing_occupies_no_slot(tmp_path: Path) -> None:
    """I5, E1: with one slot and one permit, a job is answered Processing 50 times, and all that
    while other jobs go through and are collected.
    """
    async with proxied_pair(tmp_path, "sync", slots=1, permits_per_peer=1) as (pair, http, proxy):
        slow = await pair.new_task("count", helper_aggregator_endpoint=proxy.url)
        quick = await pair.new_task("count", helper_aggregator_endpoint=proxy.url)
        slow_hands, quick_hands = TaskHarness(slow, http), TaskHarness(quick, http)
        polls = 0
        others_done = trio.Event()

        def script(request: Request) -> Action:
            nonlocal polls
            if slow_hands.id_text not in request.target or "aggregation_jobs" not in request.target:
                return Pass()
            if request.method == "POST" and not polls:
                late = f"/tasks/{slow_hands.id_text}/aggregation_jobs/late?step=0"
                return Answer(answer(200, Location=late, Retry_After="0"))
            if request.method == "GET" and not (polls >= 50 and others_done.is_set()):
                polls += 1
                return Answer(answer(200, Retry_After="0"))
            return Pass()

        proxy.script = script
        await slow_hands.upload(slow_hands.seal([1, 1], "slow"))
        await proxy.until(lambda: polls >= 1)
        for n in range(3):
            await quick_hands.upload(quick_hands.seal([1, 0], f"quick {n}"))
            await quick_hands.until_counted(pair.leader, "aggregate_finished", 2 * (n + 1))
        assert (await quick.collect(query_at())).value == 3
        assert "aggregate_finished" not in await slow_hands.counters(pair.leader)
        await proxy.until(lambda: polls >= 50)
        others_done.set()
        # The Helper knows nothing of that Location, so the stored bytes go out once more (D4).
        assert (await slow.collect(query_at())).value == 2
        first, second = (
            each.request
            for each in proxy.of("POST", "aggregation_jobs")
            if slow_hands.id_text in each.request.target
        )
        assert first.body == second.body


async def test_e1_a_helper_that_hangs_delays_nobody_else(tmp_path: Path) -> None:
    """E1: it holds its own permits; with one slot, a task of another Helper is collected."""
    async with proxied_pair(tmp_path, "sync", slots=1, permits_per_peer=2) as (pair, http, proxy):
        released = trio.Event()
        proxy.script = lambda _: Hold(released)
        hanging = await pair.new_task("count", helper_aggregator_endpoint=proxy.url)
        other = await pair.new_task("count")
        harness = TaskHarness(hanging, http)
        for n in range(4):
            await harness.upload(harness.seal([1, 1], f"hanging {n}"))
        await TaskHarness(other, http).upload(TaskHarness(other, http).seal([1, 0], "other"))
        assert (await other.collect(query_at())).value == 1
        assert not proxy.exchanges
        assert await harness.counters(pair.helper) == {}
        released.set()
        assert (await hanging.collect(query_at())).value == 8


def job_of(raw: bytes) -> str:
    """The path of the resource that an answer's Location names."""
    lines = raw.partition(b"\r\n\r\n")[0].decode().split("\r\n")
    [location] = [line for line in lines if line.lower().startswith("location:")]
    return location.partition(":")[2].strip().removesuffix("?step=0")
