"""What expires of a Leader's collections: frozen ones fail, results go, half-deleted batches are
never summed.

Rules A8, C2, C6, D6. Reports expire two hours, two time precisions, after theirs was over.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from dapd.commits.batch_total import batch_total
from dapd.commits.collections import (
    BatchChangedError,
    Failed,
    advance_collection,
    delete_collection,
    finish_collection,
    freeze_collection,
    give_up_collection,
)
from dapd.datastore import Tx, collections, counters, tasks
from dapd.datastore.collections import CollectionJob, FrozenBatch
from dapd.datastore.leases import Lease
from dapd.driver.collection import frozen_batch
from dapd.errors import Abort
from dapd.gc.loop import GarbageCollector, raise_marks
from dapd.messages.collection import CollectionJobReq
from dapd.messages.common import BatchMode
from dapd.protocol.batches import time_bucket
from dapd.protocol.collect import Freeze, Wait
from dapd.protocol.task import TaskSettings
from dapd.runtime.context import Context
from tests.clock import NOW, PRECISION, TIME
from tests.database_pair import (
    NEXT_BATCH,
    QUERY,
    DatabasePair,
    interval_query,
    leader_context,
    open_databases,
)
from tests.gc.row_counts import row_counts


@dataclass
class Side:
    """A Leader whose task has an expiry age."""

    databases: DatabasePair
    context: Context

    def later(self, hours: float) -> None:
        self.databases.clock.advance(hours * 3600)

    async def collect(self) -> dict[str, int]:
        gone = await GarbageCollector(self.context).collect()
        return {name: n for counts in gone.values() for name, n in counts.items() if n}

    def found(self, job: CollectionJob) -> CollectionJob | None:
        """The job as a GET finds it."""
        databases = self.databases
        mark = databases.leader.mark_at(databases.clock.instant())
        return databases.store.read_sync(collections.by_id, databases.leader.task_pk, job.id, mark)

    def summed(self, job: CollectionJob) -> tuple[Lease, FrozenBatch, tuple[int, int]]:
        """Create a job whose batch is complete and summed, but not frozen yet."""
        databases = self.databases
        lease = databases.lease(job)
        move = databases.store.run_sync(
            advance_collection, lease, databases.leader, databases.clock.instant(), NOW
        )
        assert isinstance(move, Freeze), move
        total = databases.store.read_sync(
            batch_total, databases.leader, databases.pair.sealer, move.batch
        )
        batch = frozen_batch(
            databases.leader, databases.pair.sealer, databases.job(job), move.batch, total
        )
        return lease, batch, total.extent

    def frozen(self, request: CollectionJobReq) -> tuple[CollectionJob, Lease]:
        """Create a collection job of this request, and freeze it."""
        databases = self.databases
        job = databases.query(request)
        lease, batch, extent = self.summed(job)
        at = databases.clock.instant()
        assert databases.store.run_sync(
            freeze_collection, lease, databases.leader, batch, extent, at
        )
        return job, lease


@asynccontextmanager
async def open_side(
    directory: Path, mode: BatchMode = BatchMode.TIME_INTERVAL
) -> AsyncIterator[Side]:
    settings = TaskSettings(report_expiry_age=2 * PRECISION)
    async with (
        open_databases(directory, mode=mode) as databases,
        leader_context(databases) as context,
    ):
        databases.store.run_sync(tasks.set_settings, databases.leader.task_pk, settings)
        databases.leader = replace(databases.leader, settings=settings)
        await context.tasks.reload()
        yield Side(databases, context)


@pytest.mark.parametrize("sent", [True, False])
async def test_d6_a_collection_still_frozen_at_expiry_fails_and_is_counted(
    tmp_path: Path, sent: bool
) -> None:
    """Even if it is leased; its batch stays collected if the Helper may have been asked."""
    async with open_side(tmp_path) as side:
        databases = side.databases
        databases.aggregate([1, 1, 1])
        job, lease = side.frozen(interval_query(TIME, 9))
        if sent:
            assert databases.store.run_sync(collections.note_send, lease)
        side.later(2)
        assert await side.collect() == {}
        told = side.context.finished.listen(("collection", job.id))
        side.later(1)
        gone = await side.collect()
        assert (gone["expired_collections"], gone["contributions"]) == (1, 1)
        assert told.is_set()
        ended = databases.job(job)
        assert (ended.state, ended.error, ended.detail) == ("failed", "batchInvalid", "expired")
        assert ended.leader_share is None
        assert databases.state_of(time_bucket(TIME + 5)) == ("collected" if sent else None)
        assert not databases.store.run_sync(finish_collection, lease, b"late")

        def counted(tx: Tx) -> object:
            return tx.one("SELECT value FROM task_counters WHERE name = 'collection_expired'")

        assert databases.store.read_sync(counted) == (1,)
        assert await side.collect() == {}
        assert side.found(job) is not None  # the Collector is still to learn it
        side.later(3)
        assert await side.collect() == {"collections": 1}


@pytest.mark.parametrize("mode", [BatchMode.TIME_INTERVAL, BatchMode.LEADER_SELECTED])
async def test_d6_what_a_given_up_collection_keeps_goes_with_its_reports(
    tmp_path: Path, mode: BatchMode
) -> None:
    """Its share, too; the reports are counted once; the Collector can still learn the error."""
    async with open_side(tmp_path, mode) as side:
        databases = side.databases
        selected = mode is BatchMode.LEADER_SELECTED
        batch_id = databases.open_batch() if selected else None
        for _ in range(2):
            databases.aggregate([1, 1, 1], batch_id=batch_id)
        if not selected:
            databases.aggregate([1], time=TIME + 1)
        job, lease = side.frozen(NEXT_BATCH if selected else interval_query(TIME, 9))
        assert databases.store.run_sync(collections.note_send, lease)
        side.later(2.5)
        at = databases.clock.instant()
        told = "unrecognizedTask", ""
        assert databases.store.run_sync(give_up_collection, lease, databases.leader, told, at)
        for _ in range(5):
            assert databases.job(job).is_given_up
            side.later(0.5)
            await side.collect()
            if not databases.job(job).is_given_up:
                break
        ended = databases.job(job)
        assert (ended.state, ended.error, ended.share_request) == (
            "failed",
            "unrecognizedTask",
            None,
        )
        n = 6 if selected else 7
        assert databases.store.read_sync(counters.of_task, databases.leader.task_pk) == {
            "collection_given_up": 1,
            "contribution_dropped": n,
        }
        side.later(9)
        await side.collect()
        assert row_counts(databases.store) == {}


async def test_d6_a_result_stays_as_long_as_its_newest_report_would(tmp_path: Path) -> None:
    """The job may have waited long for its reports, so the Collector asks only now."""
    async with open_side(tmp_path) as side:
        databases = side.databases
        job = databases.query(interval_query(TIME + 10, 1))
        side.later(10)
        databases.aggregate([1, 1, 1], time=TIME + 10)
        lease, batch, extent = side.summed(job)
        at = databases.clock.instant()
        assert databases.store.run_sync(
            freeze_collection, lease, databases.leader, batch, extent, at
        )
        assert databases.store.run_sync(finish_collection, lease, b"result")
        side.later(2)
        assert await side.collect() == {}
        found = side.found(job)
        assert found is not None
        assert found.response == b"result"
        side.later(1)
        assert side.found(job) is None
        assert (await side.collect())["collections"] == 1
        assert row_counts(databases.store) == {}


async def test_d6_ended_jobs_without_reports_go_by_when_they_were_made(tmp_path: Path) -> None:
    """Reads hide them before they are deleted."""
    async with open_side(tmp_path) as side:
        databases = side.databases
        job = databases.query(interval_query(TIME, 100))
        databases.store.run_sync(
            delete_collection, databases.leader, job.id, databases.clock.instant()
        )
        side.later(2)
        assert await side.collect() == {}
        assert side.found(job) is not None
        side.later(1)
        assert side.found(job) is None
        assert await side.collect() == {"collections": 1}
        assert row_counts(databases.store) == {}


async def test_d6_a_query_that_begins_below_the_mark_finds_its_job_until_that_expires(
    tmp_path: Path,
) -> None:
    """The resource stays as it is until it expires; then its batch is gone, too."""
    async with open_side(tmp_path) as side:
        databases = side.databases
        side.later(1)
        databases.aggregate([1, 1, 1], time=TIME + 1)
        job, lease = side.frozen(interval_query(TIME, 2))
        assert databases.store.run_sync(finish_collection, lease, b"result")
        side.later(2)
        for _ in range(2):
            assert databases.query(interval_query(TIME, 2)).id == job.id
            await side.collect()
        side.later(1)
        for _ in range(2):
            with pytest.raises(Abort) as caught:
                databases.query(interval_query(TIME, 2))
            assert (caught.value.type, caught.value.detail) == ("batchInvalid", "expired")
            await side.collect()
        assert row_counts(databases.store) == {}


@pytest.mark.parametrize("collected", [True, False])
async def test_a8_an_expired_result_gives_way_to_the_next_batch(
    tmp_path: Path, collected: bool
) -> None:
    """This holds even if nobody has fetched it, and whether or not it is deleted yet."""
    async with open_side(tmp_path, BatchMode.LEADER_SELECTED) as side:
        databases = side.databases
        databases.aggregate([1, 1, 1], batch_id=databases.open_batch())
        job, lease = side.frozen(NEXT_BATCH)
        assert databases.store.run_sync(finish_collection, lease, b"result")
        side.later(2)
        assert databases.query(NEXT_BATCH).id == job.id
        side.later(1)
        if collected:
            await side.collect()
            assert row_counts(databases.store) == {}
        following = databases.query(NEXT_BATCH)
        assert (following.id == job.id, following.state) == (False, "waiting")


async def test_d6_a_batch_that_expires_while_it_is_summed_is_not_frozen(tmp_path: Path) -> None:
    """The sum may lack half of the batch: the mark in the transaction decides."""
    async with open_side(tmp_path) as side:
        databases = side.databases
        databases.aggregate([1, 1, 1])
        job = databases.query(QUERY)
        lease, batch, extent = side.summed(job)
        at = databases.clock.instant()
        databases.store.run_sync(raise_marks, {databases.leader.task_pk: TIME + 1})
        with pytest.raises(BatchChangedError):
            databases.store.run_sync(freeze_collection, lease, databases.leader, batch, extent, at)
        assert databases.job(job).state == "waiting"
        failed = databases.store.run_sync(advance_collection, lease, databases.leader, at, NOW)
        assert isinstance(failed, Failed)
        assert databases.job(job).detail == "expired"


async def test_c6_an_expired_batch_is_taken_by_no_collection(tmp_path: Path) -> None:
    """Neither before it is deleted nor after; one that expires while it is summed isn't frozen."""
    async with open_side(tmp_path, BatchMode.LEADER_SELECTED) as side:
        databases = side.databases
        databases.aggregate([1, 1, 1], batch_id=databases.open_batch())
        job = databases.query(NEXT_BATCH)
        lease, batch, extent = side.summed(job)
        at = databases.clock.instant()
        databases.store.run_sync(raise_marks, {databases.leader.task_pk: TIME + 1})
        with pytest.raises(BatchChangedError):
            databases.store.run_sync(freeze_collection, lease, databases.leader, batch, extent, at)
        for _ in range(2):
            move = databases.store.run_sync(
                advance_collection, lease, databases.leader, at, databases.clock.now()
            )
            assert move == Wait()
            await side.collect()
            lease = databases.lease(job)
        assert row_counts(databases.store) == {"collection_jobs": 1}
