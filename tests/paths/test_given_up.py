"""A Helper that refuses for longer than a Leader puts up with, between a real pair (rule D4)."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
import trio

from dapd.collector import CollectionFailed, Query, Result
from dapd.datastore import leases
from dapd.protocol.task import TaskSettings
from tests.clock import TIME, ManualClock
from tests.leader_harness import problem
from tests.pair_harness import TaskHarness, open_pair, query_at, running_clock, until
from tests.raw_http import Request, answer
from tests.scripted_proxy import Action, Answer, Cut, LoseAnswer, Pass, ScriptedProxy

QUICK = {
    "leader": {
        "retry_min": 0.001,
        "retry_max": 30,
        "poll_min": 0.001,
        "max_wait": 0,
        "min_job_size": 1,
    }
}
MINUTE, HOUR, DAY = 60, 3600, 86_400
SHARES, JOBS = "aggregate_shares", "aggregation_jobs"
NOBODY = Answer(problem("unrecognizedTask", 404))


@dataclass
class Trial:
    """A task whose Helper is behind a proxy, and the pair's clock."""

    harness: TaskHarness
    proxy: ScriptedProxy
    clock: ManualClock

    def answers(self, resource: str, *first: Action, then: Action) -> None:
        """The proxy treats requests for this resource so, and passes on all others."""
        left = list(first)

        def script(request: Request) -> Action:
            if not request.target.endswith(f"/{resource}"):
                return Pass()
            return left.pop(0) if left else then

        self.proxy.script = script

    async def asked(self, resource: str, seconds: float, *, every: float) -> None:
        """Let time pass, in which the Leader asks for the resource again and again."""
        for _ in range(round(seconds / every)):
            asked = len(self.proxy.of("POST", resource))
            await self.pass_time(every)
            await self.until_asked(resource, asked + 1)

    async def until_asked(self, resource: str, times: int) -> None:
        """Wait until the Leader has asked so often."""
        await self.proxy.until(lambda: len(self.proxy.of("POST", resource)) >= times)

    async def pass_time(self, seconds: float) -> None:
        """Let time pass once the Leader has committed what its Helper answered."""
        leader = self.harness.pair.leader.context

        async def idle() -> bool:
            return await leader.read(leases.held, leader.now()) == (0, 0)

        await until(idle)
        self.clock.advance(seconds)
        leader.jobs.ring()


@asynccontextmanager
async def trial(directory: Path, **settings: object) -> AsyncIterator[Trial]:
    clock = running_clock()
    async with (
        open_pair(directory, leader=QUICK, clock=clock) as (pair, http),
        trio.open_nursery() as nursery,
    ):
        proxy = ScriptedProxy(pair.helper.port)
        await proxy.serve(nursery)
        task = await pair.new_task(
            "histogram:length=3",
            helper_aggregator_endpoint=proxy.url,
            **settings,  # type: ignore[arg-type]
        )
        yield Trial(TaskHarness(task, http), proxy, clock)
        for side in (pair.leader, pair.helper):
            await side.stop()
        nursery.cancel_scope.cancel()


async def collect(it: Trial, query: Query, meanwhile: Callable[[], object]) -> object:
    """Query a batch, and do something while the query waits: the result, or what went wrong."""
    found: list[object] = []

    async def ask() -> None:
        try:
            found.append(await it.harness.task.collect(query))
        except CollectionFailed as failed:
            found.append(failed)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(ask)
        await meanwhile()  # type: ignore[misc]
    return found[0]


@pytest.mark.parametrize("mode", ["time-interval", "leader-selected"])
@pytest.mark.parametrize("first", [LoseAnswer(), Cut()])
async def test_d4_the_collector_is_told_and_its_next_query_goes_on(
    tmp_path: Path, mode: str, first: Action
) -> None:
    """Whether the Helper had made its share or not: after an hour of `unrecognizedTask` the
    Collector gets that, and the same query later gets the exact result, from the same request.
    """
    async with trial(tmp_path, batch_mode=mode, min_batch_size=4) as it:
        query = Query.next_batch() if mode == "leader-selected" else query_at()
        assert await it.harness.upload(it.harness.seal([0, 1, 1, 2], "good")) == []
        it.answers(SHARES, first, then=NOBODY)

        async def an_hour() -> None:
            await it.until_asked(SHARES, 2)
            await it.asked(SHARES, HOUR, every=6 * MINUTE)

        failed = await collect(it, query, an_hour)
        assert isinstance(failed, CollectionFailed)
        assert failed.type == "unrecognizedTask"
        assert "the Helper has refused its aggregate share" in str(failed)
        assert it.proxy.of("DELETE", SHARES) == []

        it.answers(SHARES, then=Pass())
        result = await it.harness.task.collect(query)
        assert isinstance(result, Result)
        assert (result.value, result.report_count) == ([1, 2, 1], 4)
        assert len({each.request.body for each in it.proxy.of("POST", SHARES)}) == 1
        assert (await it.harness.counters(it.harness.pair.leader))["collection_given_up"] == 1


@pytest.mark.parametrize("outage", [Cut(), Answer(answer(502)), Answer(answer(429))])
async def test_d4_an_outage_of_61_minutes_fails_nothing(tmp_path: Path, outage: Action) -> None:
    """A refusal before it and one after it don't either."""
    async with trial(tmp_path) as it:
        await it.harness.upload(it.harness.seal([0, 1, 1, 2], "good"))
        it.answers(SHARES, NOBODY, then=outage)

        async def an_outage() -> None:
            await it.until_asked(SHARES, 2)
            await it.asked(SHARES, 61 * MINUTE, every=61 * MINUTE)
            it.answers(SHARES, NOBODY, then=Pass())
            await it.asked(SHARES, 10 * MINUTE, every=10 * MINUTE)
            await it.pass_time(10 * MINUTE)

        result = await collect(it, query_at(), an_outage)
        assert isinstance(result, Result)
        assert result.value == [1, 2, 1]


async def lose_a_job(it: Trial, reports: list[bytes], first: Action) -> None:
    """Upload reports whose job is lost after a week of refusals; ``first`` happens to its send."""
    leader = it.harness.pair.leader
    sent = len(it.proxy.of("POST", JOBS))
    it.answers(JOBS, first, then=NOBODY)
    assert await it.harness.upload(reports) == []
    await it.until_asked(JOBS, sent + 2)
    await it.asked(JOBS, 8 * DAY, every=8 * DAY)
    await it.harness.until_counted(leader, "aggregate_lost", len(reports))
    it.answers(JOBS, then=Pass())


async def test_d4_the_reports_of_a_suspect_leader_selected_batch_are_counted(
    tmp_path: Path,
) -> None:
    """The Helper has aggregated a job that the Leader has given up: later reports are in another
    batch, which is collected, and those of the first batch are counted once its mismatch is final.
    """
    async with trial(
        tmp_path,
        batch_mode="leader-selected",
        min_batch_size=2,
        settings=TaskSettings(batch_target_size=6, report_expiry_age=None),
    ) as it:
        leader = it.harness.pair.leader
        await it.harness.upload(it.harness.seal([0, 0], "in both"))
        await it.harness.until_counted(leader, "aggregate_finished", 2)
        await lose_a_job(it, it.harness.seal([1, 1], "in one"), LoseAnswer())
        await it.harness.upload(it.harness.seal([2, 2, 2, 2], "in another batch"))
        await it.harness.until_counted(leader, "aggregate_finished", 6)

        with pytest.raises(CollectionFailed, match="batchMismatch"):
            await it.harness.task.collect(Query.next_batch())
        result = await it.harness.task.collect(Query.next_batch())
        assert (result.value, result.report_count) == ([0, 0, 4], 4)
        assert await it.harness.counters(leader) == {
            "upload_accepted": 8,
            "aggregate_finished": 6,
            "aggregate_lost": 2,
            "contribution_uncollectable": 2,
        }


async def test_d4_a_suspect_batch_that_the_helper_does_not_have_is_collected(
    tmp_path: Path,
) -> None:
    """The Helper never saw the job that was given up, so both have the same."""
    async with trial(tmp_path, batch_mode="leader-selected", min_batch_size=2) as it:
        leader = it.harness.pair.leader
        await it.harness.upload(it.harness.seal([0, 0], "in both"))
        await it.harness.until_counted(leader, "aggregate_finished", 2)
        await lose_a_job(it, it.harness.seal([1], "in neither"), Cut())
        result = await it.harness.task.collect(Query.next_batch())
        assert (result.value, result.report_count) == ([2, 0, 0], 2)


async def test_d4_the_suspect_buckets_of_an_interval_are_closed_and_the_others_collected(
    tmp_path: Path,
) -> None:
    """Nothing with a suspect bucket ever matches, so later reports for it are rejected."""
    async with trial(tmp_path, settings=TaskSettings(report_expiry_age=None)) as it:
        leader = it.harness.pair.leader
        await it.harness.upload(it.harness.seal([0, 0], "good"))
        await it.harness.upload(it.harness.seal([2, 2], "the hour before", at=TIME - 1))
        await it.harness.until_counted(leader, "aggregate_finished", 4)
        await lose_a_job(it, it.harness.seal([1, 1], "in one"), LoseAnswer())

        with pytest.raises(CollectionFailed, match="batchMismatch"):
            await it.harness.task.collect(query_at(TIME - 1, 2))
        assert (await it.harness.counters(leader))["contribution_uncollectable"] == 2
        with pytest.raises(CollectionFailed, match="batchOverlap"):
            await it.harness.task.collect(query_at())
        result = await it.harness.task.collect(query_at(TIME - 1))
        assert (result.value, result.report_count) == ([0, 0, 2], 2)
        late = it.harness.seal([1], "too late")
        assert len(await it.harness.upload(late)) == 1
