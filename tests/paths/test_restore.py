"""A side of a running pair goes back to an older file: nothing counts twice, and it goes on."""

from __future__ import annotations

import os
import shutil
import sqlite3
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import trio

from dapd.collector import CollectionFailed, Query
from dapd.commits.restore import accepted_range, inspect, quarantine, restore_accept
from dapd.datastore import Datastore, Tx, tasks
from dapd.datastore.replace import replace_database
from dapd.http import Ready, Refused, resource_url
from dapd.messages.collection import AggregateShareReq, BatchSelector, CollectionJobReq
from dapd.messages.collection import Query as QueryMessage
from dapd.messages.common import Interval, MediaType
from dapd.protocol.task import Instant
from dapd.reports import ReportError
from dapd.testing import PairTask
from dapd.testing.pair import Aggregator
from tests.clock import PRECISION, TIME, ManualClock
from tests.pair_harness import TaskHarness, open_pair, query_at, running_clock, until

HOUR = PRECISION
NEXT = Query.next_batch()
QUICK: dict[str, dict[str, Any]] = {"leader": {"min_job_size": 1, "max_wait": 0}}
DROPPED = ReportError.REPORT_DROPPED
sides = pytest.mark.parametrize("side", ["leader", "helper"])
ways = pytest.mark.parametrize("way", ["by hand", "by command"])
modes = pytest.mark.parametrize("mode", ["time-interval", "leader-selected"])


@dataclass
class Restoring:
    """One side of a pair on a hand's clock, and its backup."""

    harness: TaskHarness
    clock: ManualClock
    side: Aggregator
    way: str = "by hand"
    backup: Path = field(init=False)

    def __post_init__(self) -> None:
        self.backup = self.side.directory / "backup.sqlite"

    @property
    def task(self) -> PairTask:
        return self.harness.task

    @property
    def database(self) -> Path:
        return self.side.directory / "dapd.sqlite"

    async def back_up(self) -> None:
        await trio.to_thread.run_sync(self._copy)

    def _copy(self) -> None:
        with closing(sqlite3.connect(self.database)) as connection:
            connection.execute("VACUUM INTO :to", {"to": os.fspath(self.backup)})

    async def go_back(self) -> None:
        """Put the backup in the database's place and start on it."""
        await self.side.stop()
        if self.way == "by hand":
            shutil.copy(self.backup, self.database)
        else:
            replace_database(
                self.database,
                self.backup,
                holder="a test",
                now=self.clock.now(),
                check=lambda copy: copy.stat(),
                prepare=self._prepare,
            )
        await self.side.start()

    def _prepare(self, datastore: Datastore) -> None:
        now = self.clock.now()
        datastore.run_sync(quarantine, Instant(now, now), 300)

    async def upload(self, values: list[int], label: str, *, at: int = TIME) -> list[bytes]:
        """Reports that both sides have aggregated; they are 0 or 1."""
        side = self.harness.pair.leader
        before = (await self.harness.counters(side)).get("aggregate_finished", 0)
        reports = self.harness.seal(values, label, at=at)
        assert await self.harness.upload(reports) == []
        await self.harness.until_counted(side, "aggregate_finished", before + len(values))
        return reports

    async def error_of(self, query: Query) -> tuple[str | None, str]:
        with pytest.raises(CollectionFailed) as failed:
            await self.task.collect(query)
        return failed.value.type, str(failed.value)

    async def ask_for_share(self, batch: Interval | bytes) -> Refused:
        """An AggregateShareReq of the test's own, which the Helper refuses."""
        query = QueryMessage(batch if isinstance(batch, Interval) else None)
        request = AggregateShareReq(CollectionJobReq(query), BatchSelector(batch), 2, bytes(32))
        answered = await self.harness.http.create(
            resource_url(
                self.harness.pair.helper.url, "tasks", self.harness.id_text, "aggregate_shares"
            ),
            request.encode(),
            MediaType.AGGREGATE_SHARE_REQ,
            self.task.files.leader.aggregator_auth_token,
        )
        assert isinstance(answered, Refused)
        return answered

    async def batch_ids(self) -> list[bytes]:
        """The leader-selected batches that the Helper knows."""
        rows = await self.rows("SELECT DISTINCT bucket FROM batch_shares", self.harness.pair.helper)
        return [row[0] for row in rows]

    async def rows(self, sql: str, side: Aggregator | None = None) -> list[tuple[Any, ...]]:
        def look(tx: Tx) -> list[tuple[Any, ...]]:
            return tx.all(sql)

        return await (side or self.side).context.read(look)

    async def accept(self, batch: tuple[int, int] | bytes | None = None) -> int:
        """What the operator types; how many ranges it opens."""

        def run(tx: Tx) -> int:
            [outline] = tasks.outlines(tx)
            return len(restore_accept(tx, outline, accepted_range(outline, batch)))

        return await self.side.context.run(run)

    async def is_quarantined(self) -> bool:
        return any(row[0] for row in await self.rows("SELECT quarantined_before FROM tasks"))


@asynccontextmanager
async def restoring(
    directory: Path, side: str, *, way: str = "by hand", mode: Any = "time-interval", size: int = 2
) -> AsyncIterator[Restoring]:
    clock = running_clock()
    async with open_pair(directory, leader=QUICK, clock=clock) as (pair, http):
        task = await pair.new_task("count", batch_mode=mode, min_batch_size=size)
        chosen = pair.leader if side == "leader" else pair.helper
        yield Restoring(TaskHarness(task, http), clock, chosen, way)


@ways
async def test_a_restored_leader_takes_no_report_that_it_may_have_taken(
    tmp_path: Path, way: str
) -> None:
    """D2: what was uploaded after the backup is dropped when it comes again; later reports count,
    and are collected.
    """
    async with restoring(tmp_path, "leader", way=way) as each:
        await each.upload([1, 1], "before")
        await each.back_up()
        forgotten = await each.upload([1, 1], "after")
        await each.go_back()
        refused = await each.harness.upload(forgotten)
        assert [error for _, error in refused] == [DROPPED] * 2
        each.clock.advance(HOUR)
        await each.upload([1, 0, 1], "new", at=TIME + 1)
        later = await each.task.collect(Query.interval((TIME + 1) * HOUR, HOUR))
        assert (later.value, later.report_count) == (2, 3)


@ways
async def test_a_restored_helper_aggregates_no_report_that_it_may_have_aggregated(
    tmp_path: Path, way: str
) -> None:
    """D2: a job that was answered after the backup is answered anew, with every report dropped, and
    so is another job of the same reports.
    """
    async with restoring(tmp_path, "helper", way=way) as each:
        await each.harness.start_job(each.harness.seal([1], "before")).run()
        await each.back_up()
        reports = each.harness.seal([1, 1], "after")
        job = each.harness.start_job(reports)
        assert set((await job.run()).outcomes) == {0}
        await each.go_back()
        again = await job.send()
        assert isinstance(again, Ready)
        assert set(job.finish(again.body).outcomes) == {DROPPED}
        other = each.harness.start_job(reports)
        assert set((await other.run()).outcomes) == {DROPPED}
        each.clock.advance(HOUR)
        new = each.harness.start_job(each.harness.seal([1], "new", at=TIME + 1))
        assert set((await new.run()).outcomes) == {0}


@ways
async def test_a_restored_leader_collects_no_interval_a_second_time(
    tmp_path: Path, way: str
) -> None:
    """C1, C4: collected after the backup, by whichever query; the Collector is told why."""
    async with restoring(tmp_path, "leader", way=way) as each:
        await each.upload([1, 1], "before")
        await each.back_up()
        assert (await each.task.collect(query_at())).value == 2
        await each.go_back()
        for query in (query_at(), Query.interval(0, (TIME + 2) * HOUR)):
            error, detail = await each.error_of(query)
            assert error == "batchInvalid"
            assert "restored from a backup" in detail


@ways
async def test_a_restored_leader_collects_no_batch_a_second_time(tmp_path: Path, way: str) -> None:
    """C6: the batch that was collected after the backup is not offered; the next one is new."""
    async with restoring(tmp_path, "leader", way=way, mode="leader-selected") as each:
        await each.upload([1, 1], "before")
        await each.back_up()
        assert (await each.task.collect(NEXT)).value == 2
        await each.go_back()
        each.clock.advance(HOUR)
        await each.upload([0, 1], "new", at=TIME + 1)
        assert (await each.task.collect(NEXT)).value == 1


@modes
@ways
async def test_a_restored_helper_serves_no_share_a_second_time(
    tmp_path: Path, way: str, mode: str
) -> None:
    """C4: what was collected after the backup is ``batchInvalid``, which no Leader takes for a
    collection that happened.
    """
    async with restoring(tmp_path, "helper", way=way, mode=mode) as each:
        await each.upload([1, 1], "before")
        await each.back_up()
        by_time = mode == "time-interval"
        assert (await each.task.collect(query_at() if by_time else NEXT)).value == 2
        [batch] = [Interval(TIME, 1)] if by_time else await each.batch_ids()
        await each.go_back()
        refused = await each.ask_for_share(batch)
        assert refused.type == "batchInvalid"
        assert "restored from a backup" in refused.detail


@modes
@sides
async def test_what_an_operator_accepts_is_collected(tmp_path: Path, side: str, mode: str) -> None:
    """C1, C2: a batch that was not collected since is whole, and its result right; its reports stay
    refused.
    """
    async with restoring(tmp_path, side, mode=mode, size=3) as each:
        reports = await each.upload([1, 1, 1], "before")
        await each.back_up()
        await each.task.pair.new_task("count")  # something that the backup lacks
        await each.go_back()
        assert await each.is_quarantined()
        by_time = mode == "time-interval"
        if by_time:
            assert (await each.error_of(query_at()))[0] == "batchInvalid"
            assert await each.accept((TIME, TIME + 1)) == 1
        else:
            assert await each.accept(None) == 1
        assert (await each.task.collect(query_at() if by_time else NEXT)).value == 3
        assert await each.accept((TIME, TIME + 1) if by_time else None) == 0
        refused = [error for _, error in await each.harness.upload(reports)]
        assert set(refused) <= {DROPPED, ReportError.REPORT_REPLAYED}
        assert len(refused) == 3


async def test_both_sides_see_the_same_numbers(tmp_path: Path) -> None:
    """Counts and checksums of a batch that both agree on are equal; of one where the backup lacks a
    job they are not.
    """
    async with restoring(tmp_path, "helper") as each:
        await each.upload([1, 1], "whole", at=TIME - 1)
        await each.upload([1, 1], "before")
        await each.back_up()
        await each.upload([1], "after")
        await each.go_back()

        def look(tx: Tx) -> list[tuple[int, bytes]]:
            [outline] = tasks.outlines(tx)
            found = inspect(tx, outline, 10, everything=True)
            return [(tally.n, tally.checksum) for tally in found.tallies]

        restored = await each.side.context.read(look)
        peer = await each.harness.pair.leader.context.read(look)
        assert restored[0] == peer[0]
        assert restored[1][1] != peer[1][1]
        assert (restored[1][0], peer[1][0]) == (2, 3)


async def test_a_leader_leaves_a_batch_that_a_restored_helper_has_closed(tmp_path: Path) -> None:
    """C6: new reports don't go on being lost in it: one job is refused, then a new batch begins."""
    async with restoring(tmp_path, "helper", mode="leader-selected", size=4) as each:
        await each.upload([1, 1], "before")
        await each.back_up()
        await each.upload([1], "after")
        await each.go_back()
        each.clock.advance(HOUR)
        leader = each.harness.pair.leader
        await each.harness.upload(each.harness.seal([1], "lost", at=TIME + 1))
        await each.harness.until_counted(leader, "aggregate_batch_collected", 1)
        await each.upload([1, 0, 0, 1], "new", at=TIME + 1)
        assert (await each.task.collect(NEXT)).value == 2
        assert (await each.harness.counters(leader))["aggregate_batch_collected"] == 1


async def test_unfinished_jobs_of_a_restored_leader_are_lost_and_frozen_collections_go_on(
    tmp_path: Path,
) -> None:
    """D4, A1: a job may have been finished since, so it is not sent again; the stored bytes of a
    frozen collection give what they gave, however often.
    """
    async with restoring(tmp_path, "leader") as each:
        helper = each.harness.pair.helper
        await each.upload([1, 1], "before")
        await helper.stop()
        results = []

        async def collect() -> None:
            results.append((await each.task.collect(query_at())).value)

        async def in_state(table: str, state: str) -> None:
            async def reached() -> bool:
                sql = f"SELECT 1 FROM {table} WHERE state = '{state}'"  # noqa: S608
                return bool(await each.rows(sql))

            await until(reached)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(collect)
            await in_state("collection_jobs", "frozen")
            await each.harness.upload(each.harness.seal([1], "in flight", at=TIME - 1))
            await in_state("aggregation_jobs", "stored")
            await each.back_up()
            await helper.start()
        assert results == [2]
        await each.harness.until_counted(each.side, "aggregate_finished", 3)
        await each.go_back()
        await in_state("collection_jobs", "finished")
        assert (await each.task.collect(query_at())).value == 2
        counted = await each.harness.counters(each.side)
        assert (counted["aggregate_lost"], counted["aggregate_finished"]) == (1, 2)


async def test_a_waiting_collection_of_a_restored_leader_fails(tmp_path: Path) -> None:
    """C5: its interval may have been collected, so it waits for nothing."""
    async with restoring(tmp_path, "leader") as each:
        errors = []

        async def collect() -> None:
            errors.append((await each.error_of(query_at()))[0])

        async with trio.open_nursery() as nursery:
            nursery.start_soon(collect)
            await until(lambda: _some(each, "SELECT 1 FROM collection_jobs WHERE state='waiting'"))
            await each.back_up()
            await each.upload([1], "one too few")
            await each.go_back()
        assert errors == ["batchInvalid"]


async def _some(each: Restoring, sql: str) -> bool:
    return bool(await each.rows(sql))


@sides
async def test_a_start_on_the_same_file_is_no_restore(tmp_path: Path, side: str) -> None:
    """Neither a restart, nor a lock file that was lost or left behind by an older one."""
    async with restoring(tmp_path, side) as each:
        await each.upload([1, 1], "before")
        lock = each.database.with_name("dapd.sqlite.lock")
        await each.side.stop()
        older = lock.read_bytes()
        await each.side.start()
        assert not await each.is_quarantined()
        await each.upload([1], "after")
        for left in (older, None):
            await each.side.stop()
            lock.unlink()
            if left is not None:
                lock.write_bytes(left)
            await each.side.start()
            assert not await each.is_quarantined()
        assert (await each.task.collect(query_at())).value == 3


async def test_a_task_that_the_backup_lacks_is_quarantined_when_it_is_added_again(
    tmp_path: Path,
) -> None:
    """D2, C1: the file has forgotten it as a whole; what was admitted for it is dropped."""
    async with restoring(tmp_path, "leader") as each:
        await each.back_up()
        task = await each.task.pair.new_task("count")
        harness = TaskHarness(task, each.harness.http)
        reports = harness.seal([1, 1], "of the new task")
        assert await harness.upload(reports) == []
        assert (await task.collect(query_at())).value == 2
        await each.go_back()
        await each.side.context.run(_add, task, each.side)
        await each.side.context.tasks.reload()
        assert [error for _, error in await harness.upload(reports)] == [DROPPED] * 2
        with pytest.raises(CollectionFailed, match="batchInvalid"):
            await task.collect(query_at())


def _add(tx: Tx, task: PairTask, side: Aggregator) -> None:
    from dapd.commits.tasks import add_task
    from dapd.protocol.task import TaskSettings
    from dapd.taskfile import aggregator_task

    add_task(tx, aggregator_task(task.files.leader, TaskSettings()), side.context.sealer)
