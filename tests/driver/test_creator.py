"""The creator's loop: an upload wakes it, draining ends it."""

from __future__ import annotations

from pathlib import Path

import msgspec
import trio

from dapd.config import Leader
from dapd.driver import creator
from tests.effort import writes
from tests.leader_harness import open_leader
from tests.raw_http import Request, answer
from tests.task_pair import TaskPair, task_pair


def silent(_: TaskPair, __: Request) -> bytes:
    return answer(500)


async def test_an_upload_wakes_the_creator_which_ends_when_draining(tmp_path: Path) -> None:
    """The loop follows events; draining ends it (I8)."""
    async with open_leader(tmp_path, task_pair(), silent) as leader:
        with trio.fail_after(60):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(creator.run, leader.context)
                await leader.upload(3)
                while await leader.states() != {"assigned": 1}:
                    await trio.lowlevel.checkpoint()
                leader.context.drain()
        assert await leader.rows("SELECT n FROM aggregation_jobs") == [(3,)]


async def test_a_round_in_which_no_job_is_due_leaves_the_writer_alone(tmp_path: Path) -> None:
    """However many tasks have reports that wait for others: one read tells."""
    async with open_leader(tmp_path, task_pair(), silent) as leader:
        leader.context.config = msgspec.structs.replace(leader.context.config, leader=Leader())
        await leader.upload(2)
        await leader.upload(1)
        before = writes(leader.context)
        assert 0 < await creator.create_due(leader.context) <= 5
        assert writes(leader.context) == before
        leader.clock.advance(leader.context.config.leader.max_wait)
        assert await creator.create_due(leader.context) == 5
        assert writes(leader.context) == before + 1
        assert await leader.rows("SELECT n FROM aggregation_jobs") == [(3,)]


async def test_i1_draining_leaves_what_waits_to_the_next_process(tmp_path: Path) -> None:
    """I1: an accepted report that is in no job yet survives a stop."""
    async with open_leader(tmp_path, task_pair(), silent) as leader:
        await leader.upload(2)
        leader.context.drain()
        await creator.run(leader.context)
        assert await leader.rows("SELECT n, state FROM report_chunks") == [(2, "waiting")]
