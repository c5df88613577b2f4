"""Whatever expires meanwhile, no report counts twice and none that is missing is uncounted (D6)."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import trio
import trio.testing
from hypothesis import given, settings
from hypothesis import strategies as st

from dapd.collector import CollectionFailed, Result
from dapd.gc.loop import GarbageCollector
from dapd.protocol.task import TaskSettings
from dapd.testing import Pair
from tests.clock import PRECISION, ManualClock
from tests.gc.row_counts import row_counts
from tests.pair_harness import TaskHarness, open_pair, query_at, running_clock, until
from tests.task_pair import make_ids

EXPIRING = TaskSettings(report_expiry_age=2 * PRECISION)
PER_UPLOAD = 2
GONE = {"batchInvalid", "batchOverlap"}
"""Why there may be no result: the batch has expired, or another collection has it."""
JOB_GONE = "HTTP 404, there is no such collection job"
"""So has the job itself; the draft has no error type for that."""

ACTIONS = st.one_of(
    st.tuples(st.just("upload"), st.integers(0, 2)),
    st.tuples(st.just("upload"), st.integers(0, 2)),
    st.tuples(st.just("collect"), st.integers(0, 2)),
    st.tuples(st.just("settle"), st.just(0)),
    st.tuples(st.just("advance"), st.integers(1, 2)),
    st.tuples(st.just("garbage"), st.integers(0, 1)),
)


@dataclass
class World:
    """A pair, its clock, and what was accepted: each report is a power of two, at an hour."""

    pair: Pair
    harness: TaskHarness
    clock: ManualClock
    accepted: dict[int, int] = field(default_factory=dict)
    results: dict[int, Result] = field(default_factory=dict)
    uploads: int = 0
    collecting: int = 0

    @property
    def hour(self) -> int:
        return self.clock.now() // 1000 // PRECISION

    async def act(self, action: tuple[str, int], nursery: trio.Nursery) -> None:
        match action:
            case ("upload", hours_ago):
                await self._upload(self.hour - hours_ago)
            case ("advance", hours):
                self.clock.advance(hours * PRECISION)
            case ("collect", hours_ago):
                nursery.start_soon(self._collect, self.hour - hours_ago)
            case ("settle", _):
                await self._settle()
            case ("garbage", side):
                await self.collect_garbage(side)
            case _:
                raise AssertionError(action)
        await trio.testing.wait_all_tasks_blocked()

    async def collect_garbage(self, side: int) -> None:
        context = (self.pair.leader, self.pair.helper)[side].context
        await GarbageCollector(context).collect()

    async def _upload(self, hour: int) -> None:
        bits = range(PER_UPLOAD * self.uploads, PER_UPLOAD * (self.uploads + 1))
        label = f"upload {self.uploads}"
        self.uploads += 1
        reports = self.harness.seal([1 << bit for bit in bits], label, at=hour)
        refused = {report_id for report_id, _ in await self.harness.upload(reports)}
        ids = make_ids(PER_UPLOAD, label)
        for place, bit in enumerate(bits):
            if ids[16 * place : 16 * (place + 1)] not in refused:
                self.accepted[bit] = hour

    async def _collect(self, hour: int) -> None:
        self.collecting += 1
        try:
            result = await self.harness.task.collect(query_at(hour))
            assert self.results.setdefault(hour, result) == result  # A1
        except CollectionFailed as failure:
            if failure.type not in GONE and not str(failure).endswith(JOB_GONE):
                raise
        finally:
            self.collecting -= 1

    async def collect_a_new_hour(self) -> None:
        """Whatever has happened before, reports of an hour that has just begun are collected."""
        self.clock.advance(PRECISION)
        await self._upload(self.hour)
        result = await self.harness.task.collect(query_at(self.hour))
        assert result.report_count == PER_UPLOAD
        self.results[self.hour] = result

    async def _settle(self) -> None:
        """Wait until each report has an outcome; collections then have a moment to end."""

        async def decided() -> bool:
            return await self.outcomes() == len(self.accepted)

        async def collected() -> bool:
            return not self.collecting

        await until(decided)
        with trio.move_on_after(0.3):
            await until(collected)

    async def outcomes(self) -> int:
        counted = await self.harness.counters(self.pair.leader)
        return sum(n for name, n in counted.items() if name.startswith("aggregate_"))


def bits_of(value: object) -> set[int]:
    assert isinstance(value, int)
    return {bit for bit in range(value.bit_length()) if value >> bit & 1}


async def _run(directory: Path, actions: Sequence[tuple[str, int]]) -> None:
    clock = running_clock()
    async with open_pair(directory, clock=clock) as (pair, http):
        task = await pair.new_task(
            f"sum:max_measurement={2**40 - 1}", min_batch_size=1, settings=EXPIRING
        )
        world = World(pair, TaskHarness(task, http), clock)
        async with trio.open_nursery() as nursery:
            for action in actions:
                await world.act(action, nursery)

            await world.collect_a_new_hour()

            async def gone() -> bool:
                clock.advance(3 * PRECISION)  # what was under way leaves something of its own time
                for side in (0, 1):
                    await world.collect_garbage(side)
                left = (
                    row_counts(pair.leader.context.datastore),
                    row_counts(pair.helper.context.datastore),
                )
                return not left[1] and set(left[0]) <= {"collection_jobs"}

            await until(gone)
            nursery.cancel_scope.cancel()
        await _judge(world)


async def _judge(world: World) -> None:
    assert await world.outcomes() == len(world.accepted)
    counted = await world.harness.counters(world.pair.leader)
    left_out = len(world.accepted) - counted.get("aggregate_finished", 0)
    missing = 0
    seen: set[int] = set()
    for hour, result in world.results.items():
        included = bits_of(result.value)
        assert len(included) == result.report_count
        assert not included & seen
        seen |= included
        asked = {bit for bit, at in world.accepted.items() if at == hour}
        assert included <= asked
        missing += len(asked - included)
    assert missing <= left_out
    for side in (world.pair.leader, world.pair.helper):
        assert len(side.context.datastore.replay) == 0


@settings(max_examples=15)
@given(st.lists(ACTIONS, min_size=5, max_size=15))
def test_d6_each_result_sums_the_accepted_reports_that_are_not_counted_as_dropped(
    actions: list[tuple[str, int]],
) -> None:
    """Under any interleaving of expiry and garbage collection with uploads, jobs, collections."""
    with tempfile.TemporaryDirectory() as directory:
        trio.run(_run, Path(directory), actions)
