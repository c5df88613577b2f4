"""Deleted tasks lose all but a tombstone; tasks whose interval is over retire. Rule D6."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from dapd import config
from dapd.config import Gc
from dapd.datastore import Tx, leases, tasks
from dapd.driver import helper_job
from dapd.gc.loop import GarbageCollector
from dapd.messages.common import BatchMode, Interval
from dapd.protocol.task import TaskSettings
from dapd.runtime.context import Context
from tests.clock import PRECISION, TIME
from tests.contexts import clock_of, make_config, open_context
from tests.gc.row_counts import row_counts
from tests.gc.test_leader import honest
from tests.leader_harness import open_leader
from tests.task_pair import leader_job, make_reports, task_pair

RETENTION = 90 * 86_400


@dataclass(frozen=True)
class Tombstone:
    """A row of ``tasks``, without the columns that a deletion keeps."""

    state: str
    expired_before: int
    secrets: tuple[object, ...]


def row_of(context: Context) -> Tombstone:
    def look(tx: Tx) -> Tombstone:
        row = tx.one(
            """SELECT state, expired_before, verify_key, aggregator_token, inbound_token_hashes
            FROM tasks"""
        )
        assert row is not None
        return Tombstone(row[0], row[1], row[2:])

    return context.datastore.read_sync(look)


async def test_d6_all_of_a_deleted_leaders_task_goes_but_its_mark(tmp_path: Path) -> None:
    """Waiting, unfinished and aggregated reports go; undecided ones are counted."""
    pair = task_pair(batch_mode=BatchMode.LEADER_SELECTED, min_batch_size=3)
    async with open_leader(tmp_path, pair, honest) as leader:
        await leader.upload(3)
        await leader.create()
        await leader.step()
        await leader.upload(2)
        await leader.create()
        await leader.upload(1)
        assert await leader.states() == {"finished": 1, "assigned": 1}
        await leader.context.run(tasks.delete, leader.task.task_pk, TIME + 2)
        await leader.context.tasks.reload()
        await GarbageCollector(leader.context).collect()
        assert row_counts(leader.context.datastore) == {}
        assert row_of(leader.context) == Tombstone("purged", TIME + 2, (b"", None, b""))
        assert (await leader.counters())["aggregate_report_dropped"] == 3
        assert len(leader.context.datastore.replay) == 0
        assert await GarbageCollector(leader.context).collect() == {}


async def test_d6_all_of_a_deleted_helpers_task_goes_once_nobody_works_on_it(
    tmp_path: Path,
) -> None:
    """A job that is being verified keeps its lease; the next round deletes it."""
    pair = task_pair()
    settings = make_config(tmp_path, helper=config.Helper(mode="async"))
    async with open_context(settings, (pair.helper, pair)) as context:
        task = context.tasks.all()[0]
        body = leader_job(pair, make_reports(pair, [1, 1])).body
        await helper_job.create(context, task, body)
        [lease], _ = await context.run(leases.lease_due, context.now(), list)
        await context.run(tasks.delete, task.task_pk, TIME + 2)
        await GarbageCollector(context).collect()
        assert row_counts(context.datastore) == {"aggregation_jobs": 1, "job_bodies": 1}
        assert row_of(context).state == "deleted"
        await context.run(leases.release, lease, context.now())
        await GarbageCollector(context).collect()
        assert row_counts(context.datastore) == {}
        assert row_of(context).state == "purged"


async def test_d6_a_purged_task_is_live_no_more(tmp_path: Path) -> None:
    """However soon after a command has deleted it: added again, it must go by its new mark."""
    pair = task_pair()
    async with open_context(make_config(tmp_path), (pair.leader, pair)) as context:
        [task] = context.tasks.all()
        await context.run(tasks.delete, task.task_pk, TIME + 2)
        await GarbageCollector(context).collect()
        assert row_of(context).state == "purged"
        assert context.tasks.all() == []


async def test_d6_what_a_request_under_way_leaves_of_a_purged_task_goes_too(
    tmp_path: Path,
) -> None:
    """Its reports are below the mark, so it admits none; the next round takes the job too."""
    pair = task_pair()
    settings = make_config(tmp_path, helper=config.Helper(mode="sync"))
    async with open_context(settings, (pair.helper, pair)) as context:
        task = context.tasks.all()[0]
        await context.run(tasks.delete, task.task_pk, TIME + 2)
        await GarbageCollector(context).collect()
        assert row_of(context).state == "purged"
        job = leader_job(pair, make_reports(pair, [1, 1]))
        await context.tasks.reload()
        late = await helper_job.create(context, task, job.body)
        assert late.response is not None
        assert row_counts(context.datastore)["aggregation_jobs"] == 1
        assert len(context.datastore.replay) == 0
        await GarbageCollector(context).collect()
        assert row_counts(context.datastore) == {}


async def test_a_task_retires_once_its_interval_has_been_over_for_the_retention_time(
    tmp_path: Path,
) -> None:
    """No report has a time beyond the interval, so the mark is the interval's end."""
    pair = task_pair(task_interval=Interval(TIME - 5, 10), settings=TaskSettings())
    settings = make_config(tmp_path)
    assert settings.gc == Gc(ended_task_retention=RETENTION)
    async with open_context(settings, (pair.helper, pair)) as context:
        clock = clock_of(context)
        task = context.tasks.all()[0]
        await helper_job.create(context, task, leader_job(pair, make_reports(pair, [1])).body)
        clock.advance(5 * PRECISION + RETENTION - 1)
        await GarbageCollector(context).collect()
        assert row_of(context).state == "active"
        clock.advance(1)
        await GarbageCollector(context).collect()
        assert row_of(context) == Tombstone("purged", TIME + 5, (b"", None, b""))
        assert row_counts(context.datastore) == {}
        assert await context.tasks.find(task.task_id) is None
