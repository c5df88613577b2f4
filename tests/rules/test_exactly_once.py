"""Rules D1 to D7: each report counts exactly once, whatever is repeated, refused or forgotten."""

from __future__ import annotations

import secrets
from dataclasses import replace
from pathlib import Path

import pytest

from dapd.commits.garbage import Freed, drop_chunks
from dapd.datastore import Tx, batches, chunks, counters, helper_jobs, outstanding
from dapd.datastore.chunks import Place
from dapd.datastore.expiry import START
from dapd.datastore.helper_jobs import JobKey
from dapd.messages.common import BatchMode
from dapd.protocol.batches import batch_id_range, time_bucket
from dapd.protocol.states import HelperJobState, RangeState
from dapd.protocol.task import END_OF_TIME, TaskSettings
from dapd.reports import ReportRules
from tests.clock import NOW, PRECISION, TIME
from tests.contexts import add_task, open_store
from tests.database_pair import interval_query, open_databases
from tests.leader_harness import helper_response, open_leader, problem, ready
from tests.raw_http import Request, answer
from tests.task_pair import TaskPair, make_ids, report_ids, task_pair

ROWS = 1001
"""More than two pages of what a start reads."""


def test_d2_a_start_reads_back_every_page_of_admitted_ids(tmp_path: Path) -> None:
    """An index without the later pages takes a report that was admitted before for a new one."""
    path, pair = tmp_path / "dapd.sqlite", task_pair()
    ids = make_ids(ROWS)
    rows = [ids[16 * n : 16 * n + 16] for n in range(ROWS)]

    def store_all(tx: Tx) -> None:
        for report_id in rows:
            place = Place(leader.task_pk, 1, time_bucket(TIME), NOW)
            chunks.insert(tx, place, (1, TIME, TIME, report_id, bytes(4), b""))
            job_id = secrets.token_bytes(16)
            key = JobKey(helper.task_pk, job_id, job_id, 1, b"", job_id, TIME)
            job_pk = helper_jobs.insert(tx, key, HelperJobState.FINISHED, NOW, None)
            tx.execute(
                "UPDATE aggregation_jobs SET admitted_ids = :ids WHERE job_pk = :pk",
                ids=report_id,
                pk=job_pk,
            )

    opened = open_store(path)
    leader = add_task(opened.datastore, pair.leader, pair)
    other = task_pair()
    helper = add_task(opened.datastore, other.helper, other)
    opened.datastore.run_sync(store_all)
    opened.close()
    opened = open_store(path)
    for task in (leader, helper):
        assert opened.datastore.replay.peek(task.task_pk, ids).count(1) == ROWS
    opened.close()


@pytest.mark.parametrize("restarted", [False, True])
async def test_d5_a_job_that_ended_without_an_answer_is_no_sign_that_the_configurations_match(
    tmp_path: Path, restarted: bool
) -> None:
    """The Leader itself rejects all reports of the first job; the Helper, whose configuration is
    another, then refuses the second one, which waits whole.
    """
    refusing = problem("invalidMessage")
    async with open_leader(tmp_path, task_pair(), lambda _, __: refusing) as house:
        await house.upload(2)
        await house.create()

        def expire(tx: Tx) -> None:
            tx.execute("UPDATE tasks SET expired_before = :mark", mark=TIME + 1)

        await house.context.run(expire)
        await house.context.tasks.reload()
        await house.step()
        assert (await house.counters())["aggregate_report_dropped"] == 2
        assert house.helper.requests == []
        if restarted:
            await house.context.tasks.reload()
        house.later(PRECISION)
        await house.upload(4, times=[TIME + 1] * 4)
        await house.create()
        await house.step()
        assert len(house.helper.requests) == 1
        assert await house.rows("SELECT n FROM aggregation_jobs WHERE state = 'stored'") == [(4,)]
        assert await house.rows("SELECT peer_accepted FROM tasks") == [(0,)]


async def test_d5_a_report_that_was_too_early_may_go_into_another_batch(tmp_path: Path) -> None:
    """Its first leader-selected batch is collected without it, before its time has come."""
    settings = TaskSettings(batch_target_size=3)
    pair = task_pair(batch_mode=BatchMode.LEADER_SELECTED, settings=settings)
    latest = [TIME]

    def script(pair: TaskPair, request: Request) -> bytes:
        if request.method == "DELETE":
            return answer(204)
        rules = ReportRules(
            too_early_after=latest[0], task_start=0, task_end=END_OF_TIME, expired_before=0
        )
        return ready(helper_response(pair, request.body, rules))

    async with open_leader(tmp_path, pair, script) as house:
        house.later(PRECISION)
        await house.upload(3, times=[TIME, TIME + 1, TIME])
        await house.create()
        await house.step()
        [(first,)] = await house.rows("SELECT batch_id FROM outstanding_batches")

        def collect(tx: Tx) -> None:
            outstanding.bind(tx, house.task.task_pk, first, 1)
            batches.close(
                tx,
                house.task.task_pk,
                *batch_id_range(first),
                state=RangeState.COLLECTED,
                collection_pk=1,
            )

        await house.context.run(collect)
        latest[0] = TIME + 1
        house.later()
        await house.create()
        await house.step()
        sizes = dict(await house.rows("SELECT bucket, n FROM batch_shares"))
        assert sizes.pop(first) == 2
        assert list(sizes.values()) == [1]
        assert (await house.counters())["aggregate_finished"] == 3


async def test_d6_an_interval_of_which_a_part_has_expired_is_not_frozen(tmp_path: Path) -> None:
    """While it waited, its first hour expired; the Helper would refuse it."""
    async with open_databases(tmp_path) as pair:
        job = pair.query(interval_query(TIME, 2))
        pair.aggregate([1, 0, 1], time=TIME + 1)
        pair.leader = replace(pair.leader, expired_before=TIME + 1)
        pair.advance(job)
        ended = pair.job(job)
        assert (ended.state, ended.error, ended.detail) == ("failed", "batchInvalid", "expired")


def test_d6_a_chunk_that_was_assigned_since_the_collector_looked_stays(tmp_path: Path) -> None:
    """The garbage collector looks in one transaction and deletes in a later one. The creator of
    jobs, whose mark is still the old one, is in between.
    """
    opened, pair = open_store(tmp_path / "dapd.sqlite"), task_pair()
    store, mark = opened.datastore, TIME + 1
    task_pk = add_task(store, pair.leader, pair).task_pk
    ids = report_ids(2)
    chunk = (2, TIME, TIME, ids, bytes(8), b"")
    pk = store.run_sync(chunks.insert, Place(task_pk, 1, time_bucket(TIME), NOW), chunk)
    found = store.read_sync(chunks.past, task_pk, mark, START)
    assert [each.pk for each in found] == [pk]
    store.run_sync(chunks.assign, pk, 7, time_bucket(TIME))
    assert store.run_sync(drop_chunks, task_pk, [pk], mark, NOW) == Freed(0)
    assert store.read_sync(chunks.load, pk).ids == ids
    assert store.read_sync(counters.of_task, task_pk) == {}
    opened.close()
