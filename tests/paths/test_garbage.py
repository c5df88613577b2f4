"""A running pair whose reports expire: nothing grows for ever, whatever was under way (D6)."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import pytest

from dapd.gc.loop import GarbageCollector
from dapd.protocol.task import TaskSettings
from dapd.testing.pair import Aggregator
from tests.clock import PRECISION
from tests.gc.row_counts import row_counts
from tests.pair_harness import TaskHarness, open_pair, query_at, running_clock, until

EXPIRING = TaskSettings(report_expiry_age=2 * PRECISION)


async def collect_garbage(side: Aggregator) -> None:
    await GarbageCollector(side.context).collect()


@pytest.mark.parametrize("batch_mode", ["time-interval", "leader-selected"])
async def test_d6_days_of_reports_leave_nothing_but_counters(
    tmp_path: Path, batch_mode: Literal["time-interval", "leader-selected"]
) -> None:
    """Collected or not, both databases are as small after ten days as after one."""
    clock = running_clock()
    async with open_pair(tmp_path, clock=clock) as (pair, http):
        task = await pair.new_task(batch_mode=batch_mode, min_batch_size=3, settings=EXPIRING)
        harness = TaskHarness(task, http)
        sides = (pair.leader, pair.helper)
        most: list[int] = []
        for day in range(10):
            at = clock.now() // 1000 // PRECISION
            assert await harness.upload(harness.seal([1, 0, 1], f"day {day}", at=at)) == []
            await harness.until_counted(pair.leader, "aggregate_finished", 3 * (day + 1))
            if day % 2:
                result = await task.collect(
                    None if batch_mode == "leader-selected" else query_at(at)
                )
                assert (result.report_count, result.value) == (3, 2)
            clock.advance(5 * PRECISION)
            for side in sides:
                await collect_garbage(side)
            most.append(sum(sum(row_counts(side.context.datastore).values()) for side in sides))
        assert max(most[5:]) <= max(most[:2])
        clock.advance(5 * PRECISION)
        for side in sides:
            await collect_garbage(side)
            assert row_counts(side.context.datastore) == {}
            assert len(side.context.datastore.replay) == 0
            assert (await harness.counters(side))["aggregate_finished"] == 30


async def test_d6_the_daemon_collects_garbage_by_itself(tmp_path: Path) -> None:
    """In rounds, once an interval."""
    clock = running_clock()
    quick = {"gc": {"interval": 0.05}}
    async with open_pair(tmp_path, leader=quick, helper=quick, clock=clock) as (pair, http):
        harness = TaskHarness(await pair.new_task(settings=EXPIRING), http)
        assert await harness.upload(harness.seal([1, 0, 1], "old")) == []
        await harness.until_counted(pair.leader, "aggregate_finished", 3)
        clock.advance(3 * PRECISION)

        async def empty() -> bool:
            return not any(
                row_counts(side.context.datastore) for side in (pair.leader, pair.helper)
            )

        await until(empty)
