"""Deleted tasks: their rows go, but not those of a task that was added again."""

from __future__ import annotations

from pathlib import Path

import pytest

from dapd.commits.tasks import add_task, delete_task
from dapd.datastore import chunks, tasks
from dapd.datastore.chunks import Place
from dapd.gc.loop import GarbageCollector
from dapd.protocol.batches import time_bucket
from dapd.protocol.task import TaskSettings, TaskState
from dapd.runtime.context import Context
from tests.clock import NOW, PRECISION, TIME
from tests.contexts import clock_of, make_config, open_context
from tests.effort import writes
from tests.task_pair import task_pair

AGE = 7 * 86_400


async def store(context: Context, time: int) -> None:
    """Store a waiting report of this time, of the first task."""
    place = Place(1, 1, time_bucket(time), NOW)
    chunk = (1, time, time, time.to_bytes(16, "big"), bytes(4), b"")
    await context.run(chunks.insert, place, chunk)


async def times(context: Context) -> list[int]:
    rows = await context.read(lambda tx: tx.all("SELECT time_min FROM report_chunks ORDER BY 1"))
    return [time for (time,) in rows]


async def test_d6_a_deleted_task_is_purged_and_its_secrets_with_it(tmp_path: Path) -> None:
    """D6: all its rows go, however new; the tombstone has its id and mark, and no secret."""
    pair = task_pair()
    async with open_context(make_config(tmp_path), (pair.leader, pair)) as context:
        await store(context, TIME + 10**6)
        await context.run(delete_task, pair.leader.task_id, NOW, 300.0, discard=True)
        await context.tasks.reload()
        collected = await GarbageCollector(context).collect()
        assert collected[pair.leader.task_id]["chunks"] == 1
        assert await times(context) == []
        (stored,) = await context.read(tasks.all_tasks)
        assert stored.state is TaskState.PURGED
        assert stored.public().expired_before == TIME + 10**6 + 1
        assert stored.public().inbound_token_hashes == ()
        assert not stored.is_readable(pair.sealer)


async def test_a_round_leaves_the_writer_alone_if_nothing_has_expired(tmp_path: Path) -> None:
    """It leaves even tasks alone that have much else, and tombstones that have nothing."""
    settings = TaskSettings(report_expiry_age=AGE)
    pairs = [task_pair(settings=settings) for _ in range(5)]
    tasks_of = [
        *((pair.leader, pair) for pair in pairs[:2]),
        *((pair.helper, pair) for pair in pairs[2:4]),
    ]
    async with open_context(make_config(tmp_path), *tasks_of) as context:
        await store(context, TIME)
        await context.run(add_task, pairs[4].leader, context.sealer)
        await context.run(delete_task, pairs[4].leader.task_id, NOW, 300.0, discard=False)
        collector = GarbageCollector(context)
        await collector.collect()
        before = writes(context)
        assert await collector.collect() == {}
        assert writes(context) == before
        clock_of(context).advance(AGE + 2 * PRECISION)
        [gone] = (await collector.collect()).values()
        assert gone["chunks"] == 1


@pytest.mark.parametrize("late", [False, True])
async def test_d6_a_round_that_took_a_task_for_a_tombstone_leaves_its_second_life_alone(
    tmp_path: Path, late: bool
) -> None:
    """D6: it may be added again during a round; rows that a late upload has left of the deleted
    task are below the mark, and go.
    """
    pair = task_pair()
    async with open_context(make_config(tmp_path), (pair.leader, pair)) as context:
        await context.run(delete_task, pair.leader.task_id, NOW, 300.0, discard=False)
        collector = GarbageCollector(context)
        await collector.collect()
        (stored,) = await context.read(tasks.all_tasks)
        tombstone = stored.public()
        assert tombstone.state is TaskState.PURGED
        if late:
            await store(context, TIME)
        await context.run(add_task, pair.leader, context.sealer)
        await store(context, TIME + 1)
        await collector._collect_task(tombstone, context.instant())
        assert await times(context) == [TIME + 1]
