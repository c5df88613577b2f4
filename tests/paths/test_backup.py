"""Backups of a Leader and a Helper at work: nothing acknowledged is missing, nothing is torn."""

from __future__ import annotations

from contextlib import closing
from functools import partial
from pathlib import Path

import trio

from dapd.datastore import backup, counters, open_for_daemon
from dapd.datastore.backup import Copy, connect_read_only
from dapd.datastore.sealed import sealing_key_ids
from dapd.datastore.sqlite import Tx
from dapd.datastore.verify import verify
from dapd.reports import ReplayIndex
from dapd.testing import Pair, PairTask
from dapd.testing.pair import Aggregator
from tests.awaitable_counter import AwaitableCounter
from tests.pair_harness import open_pair

BACKUPS = 6
UPLOADERS = 3


async def test_backups_under_load_are_consistent_and_miss_nothing(tmp_path: Path) -> None:
    """Each holds every report that was acknowledged before it began, and passes all that
    ``dapd backup verify`` and ``dapd datastore check`` look at.
    """
    acknowledged = AwaitableCounter()

    async def upload(task: PairTask) -> None:
        while True:
            await task.upload([1, 0, 1])
            acknowledged.add(3)

    async with open_pair(tmp_path, leader={"leader": {"min_job_size": 5}}) as (pair, _):
        task = await pair.new_task()
        (tmp_path / "backups").mkdir()
        async with trio.open_nursery() as nursery:
            for _ in range(UPLOADERS):
                nursery.start_soon(upload, task)
            for _ in range(BACKUPS):
                before = await acknowledged.more(3 * UPLOADERS)
                copies = [await take(side, tmp_path / "backups") for side in sides(pair)]
                assert accepted(copies[0]) >= before
                for side, copy in zip(sides(pair), copies, strict=True):
                    await looked_into(side, copy)
            nursery.cancel_scope.cancel()
    assert acknowledged.value > 0


async def test_a_daemon_starts_on_what_was_backed_up_under_load(tmp_path: Path) -> None:
    """All of it is there, and the file is not behind itself."""
    async with open_pair(tmp_path) as (pair, _):
        task = await pair.new_task()
        await task.upload([1] * 10)
        (tmp_path / "backups").mkdir()
        copy = await take(pair.leader, tmp_path / "backups")
        opened = open_for_daemon(copy.path, holder="a test", now=0, on_lost=refuse_to_end)
        assert not opened.behind
        assert len(opened.datastore.replay) == 10
        opened.close()


def sides(pair: Pair) -> tuple[Aggregator, Aggregator]:
    return pair.leader, pair.helper


async def take(side: Aggregator, directory: Path) -> Copy:
    """What ``dapd backup`` does, beside the daemon."""
    return await trio.to_thread.run_sync(
        partial(
            backup.take,
            side.context.config.datastore.path,
            directory,
            lambda copy: f"{side.port}-{backup.backup_name(copy)}",
            now=0,
            spare=0,
        )
    )


async def looked_into(side: Aggregator, copy: Copy) -> None:
    ids = await side.context.read(sealing_key_ids)
    await trio.to_thread.run_sync(verify, copy.path, side.context.sealer, ids)


def accepted(copy: Copy) -> int:
    with closing(connect_read_only(copy.path)) as connection:
        return counters.of_task(Tx(connection, ReplayIndex()), 1)["upload_accepted"]


def refuse_to_end(message: str) -> None:
    raise AssertionError(message)
