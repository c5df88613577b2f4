"""The last hour's numbers, from a real database, at Trio's own pace."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import pytest
import trio
from trio.testing import MockClock

from dapd.datastore import Tx, counters, tasks
from dapd.errors import DatastoreError
from dapd.protocol.task import TaskState
from dapd.runtime.context import Context
from dapd.runtime.history import POINTS, RECENT
from dapd.upkeep.history import EVERY, run, take
from tests.contexts import add_task
from tests.leader_harness import LeaderHarness, honest, open_leader
from tests.task_pair import task_pair


async def test_a_point_has_what_happened_since_the_last_and_what_is_there_now(
    tmp_path: Path, mock_clock: MockClock
) -> None:
    """What happened before the first look is not part of this hour."""
    async with open_leader(tmp_path, task_pair(), honest) as leader:
        found, metrics = leader.context.history, leader.context.metrics
        await leader.upload(2)
        metrics.http_requests.labels("reports", 503).inc()
        await take(leader.context)
        assert len(found.seconds) == 0
        assert not found.rate(found.accepted)

        await leader.upload(6)
        await leader.create()
        for status in (503, 500, 404, 200):
            metrics.http_requests.labels("reports", status).inc()
        metrics.loop_lag.observe(0.1)
        metrics.loop_lag.observe(0.3)
        mock_clock.jump(30)
        await take(leader.context)
        await leader.step()
        mock_clock.jump(60)
        await take(leader.context)

    assert list(found.seconds) == [30, 60]
    assert list(found.accepted) == [6, 0]
    assert list(found.aggregated) == [0, 8]
    assert list(found.unfinished) == [1, 0]
    assert list(found.errors) == [2, 0]
    assert list(found.queued) == [0, 0]
    assert list(found.late) == [pytest.approx(0.2), 0]
    assert found.rates(found.accepted) == [6 / 30, 0]
    assert found.rate(found.accepted) == 6 / 90
    (task,) = found.tasks.values()
    assert (list(task.accepted), list(task.aggregated)) == ([6, 0], [0, 8])


async def test_an_hour_is_kept_and_no_more(tmp_path: Path, mock_clock: MockClock) -> None:
    """Memory is bounded, and a present rate is that of the last five minutes alone."""
    async with open_leader(tmp_path, task_pair(), honest) as leader:
        found = leader.context.history
        await take(leader.context)
        for number in range(POINTS + RECENT):
            if number < POINTS:
                await leader.context.run(count, leader.task.task_pk)
            mock_clock.jump(EVERY)
            await take(leader.context)
    (task,) = found.tasks.values()
    assert len(found.seconds) == len(found.late) == len(task.accepted) == POINTS
    assert sum(found.seconds) == 3600
    assert sum(found.accepted) == POINTS - RECENT
    assert found.rate(found.accepted) == found.rate(task.accepted) == 0
    assert sum(found.rates(task.accepted)) == pytest.approx((POINTS - RECENT) / EVERY)


async def test_tasks_come_and_go(tmp_path: Path, mock_clock: MockClock) -> None:
    """A new task's reports are all of this hour; a purged task's series is dropped."""
    async with open_leader(tmp_path, task_pair(), honest) as leader:
        context, found = leader.context, leader.context.history
        for _ in range(3):
            await context.run(count, leader.task.task_pk)
            await take(context)
            mock_clock.jump(EVERY)
        other = task_pair()
        new = add_task(context.datastore, replace(other.leader, task_id=bytes(32)), other)
        await context.run(count, new.task_pk)
        await take(context)
        assert list(found.tasks[bytes(32)].accepted) == [1]
        assert found.rates(found.tasks[bytes(32)].accepted) == [1 / EVERY]
        assert list(found.tasks[leader.task.task_id].accepted) == [1, 1, 0]
        await context.run(tasks.set_state, leader.task.task_pk, TaskState.PURGED)
        await take(context)
    assert list(found.tasks) == [bytes(32)]
    assert list(found.accepted) == [1, 1, 1, 0]


class Look:
    """Adds a point, and tells when by Trio's clock, and whether it succeeded."""

    def __init__(self) -> None:
        self.tell, self.told = trio.open_memory_channel[tuple[float, bool]](math.inf)

    async def __call__(self, context: Context) -> None:
        good = False
        try:
            await take(context)
            good = True
        finally:
            self.tell.send_nowait((trio.current_time(), good))


async def test_the_loop_looks_twice_a_minute_until_draining(
    tmp_path: Path, mock_clock: MockClock
) -> None:
    """A database that can't be read costs a point; the next one covers that time too."""
    async with open_leader(tmp_path, task_pair(), honest) as leader:
        look, found = Look(), leader.context.history
        start = trio.current_time()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(run, leader.context, look)
            assert await look.told.receive() == (start, True)
            await rename(leader, "task_counters", "elsewhere")
            mock_clock.jump(EVERY)
            assert await look.told.receive() == (start + EVERY, False)
            await rename(leader, "elsewhere", "task_counters")
            await leader.upload(6)
            mock_clock.jump(EVERY)
            assert await look.told.receive() == (start + 2 * EVERY, True)
            leader.context.drain()
        with pytest.raises(trio.WouldBlock):
            look.told.receive_nowait()
    assert list(found.seconds) == [2 * EVERY]
    assert found.rate(found.accepted) == 6 / (2 * EVERY)


async def test_a_database_that_fails_is_said_to_who_asked(tmp_path: Path) -> None:
    """``take`` raises; only the loop goes on without a word."""
    async with open_leader(tmp_path, task_pair(), honest) as leader:
        await rename(leader, "task_counters", "elsewhere")
        with pytest.raises(DatastoreError):
            await take(leader.context)


def count(tx: Tx, task_pk: int) -> None:
    counters.add(tx, task_pk, {"upload_accepted": 1, "upload_report_replayed": 5})


async def rename(leader: LeaderHarness, old: str, new: str) -> None:
    def alter(tx: Tx) -> None:
        tx.execute(f"ALTER TABLE {old} RENAME TO {new}")

    await leader.context.run(alter)
