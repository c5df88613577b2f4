"""The creator's loop: an upload wakes it, draining ends it."""

from __future__ import annotations

from pathlib import Path

import trio

from dapd.driver import creator
from tests.build import Pair, task_pair
from tests.leaderhouse import open_house
from tests.peer import Request, answer


def silent(_: Pair, __: Request) -> bytes:
    return answer(500)


async def test_an_upload_wakes_the_creator_which_ends_when_draining(tmp_path: Path) -> None:
    """The loop follows events; draining ends it (I8)."""
    async with open_house(tmp_path, task_pair(), silent) as house:
        with trio.fail_after(60):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(creator.run, house.context)
                await house.upload(3)
                while await house.states() != {"assigned": 1}:
                    await trio.lowlevel.checkpoint()
                house.context.drain()
        assert await house.rows("SELECT n FROM aggregation_jobs") == [(3,)]


async def test_i1_draining_leaves_what_waits_to_the_next_process(tmp_path: Path) -> None:
    """I1: an accepted report that is in no job yet survives a stop."""
    async with open_house(tmp_path, task_pair(), silent) as house:
        await house.upload(2)
        house.context.drain()
        await creator.run(house.context)
        assert await house.rows("SELECT n, state FROM report_chunks") == [(2, "waiting")]
