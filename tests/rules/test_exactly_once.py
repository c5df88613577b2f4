"""Rules D1 to D7: each report counts exactly once, whatever is repeated, refused or forgotten."""

from __future__ import annotations

import resource
import secrets
from dataclasses import replace
from pathlib import Path

import pytest
import trio

from dapd.client import Client, Uploaded
from dapd.commits.collections import finish_collection
from dapd.commits.garbage import Freed, drop_chunks, drop_leader_jobs
from dapd.commits.helper_jobs import commit_job
from dapd.commits.leader_jobs import Result, finish_job
from dapd.commits.uploads import OpenedUploads, store_uploads
from dapd.config import Leader
from dapd.datastore import (
    Tx,
    batches,
    chunks,
    collections,
    counters,
    helper_jobs,
    leader_jobs,
    leases,
    open_for_daemon,
    outstanding,
)
from dapd.datastore.chunks import Place
from dapd.datastore.expiry import START
from dapd.datastore.helper_jobs import JobKey
from dapd.datastore.leader_jobs import LeaseLost
from dapd.datastore.sealed import note_sealing_key
from dapd.driver import helper_job
from dapd.driver.step import Step
from dapd.errors import DatastoreError
from dapd.gc.loop import GarbageCollector
from dapd.http import Patience
from dapd.messages.common import BatchMode, Interval
from dapd.protocol.batches import batch_id_range, time_bucket
from dapd.protocol.states import HelperJobState, RangeState
from dapd.protocol.task import END_OF_TIME, TaskSettings
from dapd.reports import ReportError, ReportRules
from tests.clock import NOW, PRECISION, TIME
from tests.contexts import add_task, open_store
from tests.database_dump import everything_in
from tests.database_pair import QUERY, interval_query, open_databases
from tests.gc.row_counts import rebuilt_replay_index
from tests.helper_harness import open_helper
from tests.leader_harness import helper_response, honest, open_leader, problem, ready
from tests.raw_http import Request, answer
from tests.scripted_aggregators import NOW as CLIENT_NOW
from tests.scripted_aggregators import ScriptedAggregators
from tests.task_pair import JOB, TaskPair, make_ids, make_reports, report_ids, task_pair


async def test_d1_the_leaders_commits_change_nothing_when_they_are_run_again(
    tmp_path: Path,
) -> None:
    """The caller never learned of the COMMIT of an upload, or of the end of a job."""
    async with open_leader(tmp_path, task_pair(min_batch_size=2), honest) as house:
        context, store = house.context, house.context.datastore
        pk, task_id = house.task.task_pk, house.task.task_id
        reports = b"".join(make_reports(house.pair, [1, 1]))
        opened = OpenedUploads(bytes(16), house.pair.open(reports), [pk], {task_id: pk})
        first = await context.run(store_uploads, opened, 10, NOW)
        after = everything_in(store)
        again = await context.run(store_uploads, opened, 10, NOW)
        assert [each.upload_errors for each in (*first, *again)] == [b"", b""]
        assert everything_in(store) == after

        await house.create()
        [lease] = await house.lease()
        job = await context.run(leader_jobs.load, lease)
        result = Result(bytes(2), [], answered=True, retry_at=lambda _: NOW)
        await context.run(finish_job, lease, job, result, NOW)
        after = everything_in(store)
        with pytest.raises(LeaseLost):
            await context.run(finish_job, lease, job, result, NOW)
        assert everything_in(store) == after


async def test_d1_the_helpers_commits_change_nothing_when_they_are_run_again(
    tmp_path: Path,
) -> None:
    """The job has its answer, the batch its share; the second run returns what the first did."""
    async with open_helper(tmp_path, task_pair()) as house:
        job = house.job(make_reports(house.pair, [1, 1]))
        verified = house.pair.verify(job.start.verify_inits)
        key = JobKey(house.task.task_pk, JOB, bytes(32), 2, b"", bytes(16), TIME)
        first = await house.context.run(commit_job, key, verified, NOW, stored=False)
        after = everything_in(house.context.datastore)
        assert await house.context.run(commit_job, key, verified, NOW, stored=False) == first
        assert everything_in(house.context.datastore) == after
        assert len(house.context.datastore.replay) == 2


async def test_d1_a_collections_commits_change_nothing_when_they_are_run_again(
    tmp_path: Path,
) -> None:
    """At the Leader the lease is lost with the first commit; the Helper finds its own share."""
    async with open_databases(tmp_path) as pair:
        pair.aggregate([1, 0, 1])
        lease = pair.freeze(pair.query(QUERY))
        assert pair.store.run_sync(finish_collection, lease, b"result")
        after = everything_in(pair.store)
        assert not pair.store.run_sync(finish_collection, lease, b"another")
        assert everything_in(pair.store) == after
        body = pair.share_request(Interval(TIME, 1)).encode()
        share = pair.serve(body)
        after = everything_in(pair.helper_store)
        assert pair.serve(body) == share
        assert everything_in(pair.helper_store) == after


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


async def test_d2_what_was_verified_or_rejected_is_in_no_replay_record(tmp_path: Path) -> None:
    """The bad report comes again in a good form, the unfinished job's reports in another job."""
    pair = task_pair()
    async with open_helper(tmp_path, pair, mode="async") as house:
        ids = report_ids(2)
        await house.create(house.job(make_reports(pair, [1], ids=ids[:16])))
        bad = house.job(make_reports(pair, [1], ids=ids[16:], tamper_with=[0]))
        stored = await house.create(bad)
        [lease] = [
            each
            for each in (await house.context.run(leases.lease_due, NOW, list))[0]
            if each.due.id == stored.id
        ]
        peer = house.context.peers.at("")
        step = Step(lease, house.task, trio.CapacityLimiter(1), peer)
        await helper_job.run(house.context, step)
        assert await house.outcomes(bad) == bytes([ReportError.VDAF_VERIFY_ERROR])
        assert len(house.context.datastore.replay) == 0
        again = house.job(make_reports(pair, [1, 1], ids=ids))
        await house.create(again)
        await house.drive()
        assert await house.outcomes(again) == bytes(2)
        path, task_pk = house.context.datastore.path, house.task.task_pk
        assert rebuilt_replay_index(path, task_pk, ids) == (2, b"\1\1")


def test_d3_the_index_is_undone_with_a_transaction_that_fails_after_it(tmp_path: Path) -> None:
    """The id is admitted, then a statement fails in SQLite, so that ROLLBACK may fail as well."""
    opened, ids = open_store(tmp_path / "dapd.sqlite"), report_ids(1)

    def admit_and_fail(tx: Tx) -> None:
        assert tx.replay.admit(1, ids) == b"\0"
        tx.execute("ROLLBACK")  # as SQLite does by itself for some errors
        tx.execute("INSERT INTO no_such_table VALUES (1)")

    with pytest.raises(DatastoreError):
        opened.datastore.run_sync(admit_and_fail)
    assert opened.datastore.replay.peek(1, ids) == b"\0"
    opened.close()


def test_d3_a_commit_that_the_disk_may_or_may_not_have_ends_the_process(tmp_path: Path) -> None:
    """The file system refuses to write COMMIT's pages: only a restart can find out."""
    lost: list[str] = []
    path, ids = tmp_path / "dapd.sqlite", report_ids(1)
    opened = open_for_daemon(path, holder="a test", now=NOW, on_lost=lost.append)

    def admit(tx: Tx) -> None:
        tx.replay.admit(1, ids)
        note_sealing_key(tx, bytes(8))

    written = path.with_name(f"{path.name}-wal").stat().st_size
    _, hard = limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (written, hard))
    try:
        with pytest.raises(DatastoreError):
            opened.datastore.run_sync(admit)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert len(lost) == 1
    assert opened.datastore.replay.peek(1, ids) == b"\0"
    opened.close()


async def test_d4_no_refusal_is_final_once_an_answer_was_lost(tmp_path: Path) -> None:
    """The Helper may have stored the job at the first send, so each later one is the same bytes."""
    disturbances = [problem("invalidMessage"), answer(413), answer(500), b""]

    def script(pair: TaskPair, request: Request) -> bytes:
        return disturbances.pop() if disturbances else honest(pair, request)

    async with open_leader(tmp_path, task_pair(), script) as house:
        await house.know_peer()
        await house.upload(4)
        await house.create()
        for _ in range(5):
            await house.step()
            house.later()
        sent = [request.body for request in house.helper.requests if request.method == "POST"]
        assert (len(sent), len(set(sent))) == (5, 1)
        assert await house.aggregated() == 4


async def test_d5_halves_leave_the_one_report_that_the_helper_refuses_alone(
    tmp_path: Path,
) -> None:
    """The refusal is of the job's first send; each half is a job of its own."""
    bad: list[bytes] = []

    def script(pair: TaskPair, request: Request) -> bytes:
        refused = request.method == "POST" and bad[0] in request.body
        return problem("invalidMessage") if refused else honest(pair, request)

    async with open_leader(tmp_path, task_pair(), script) as house:
        await house.know_peer()
        bad.append((await house.upload(7))[4][:16])
        await house.create()
        while await house.step():
            house.later()
        assert await house.aggregated() == 6
        assert (await house.counters())["aggregate_invalid_message"] == 1


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
        sizes: dict[bytes, int] = dict(await house.rows("SELECT bucket, n FROM batch_shares"))
        assert sizes.pop(first) == 2
        assert list(sizes.values()) == [1]
        assert (await house.counters())["aggregate_finished"] == 3


async def test_d5_halves_wait_longer_the_smaller_they_are(tmp_path: Path) -> None:
    """A Helper that refuses everything is not flooded with small jobs."""
    limits = Leader(min_job_size=1, max_wait=0, retry_min=1, retry_max=600)
    async with open_leader(
        tmp_path, task_pair(), lambda _, __: answer(413), config=limits
    ) as house:
        await house.know_peer()
        await house.upload(8)
        await house.create()
        waits = []
        for jobs in (1, 2, 4):
            assert await house.step() == jobs
            rows = await house.rows("SELECT run_at FROM aggregation_jobs WHERE state = 'assigned'")
            assert len(set(rows)) == 1
            waits.append((rows[0][0] - house.context.now()) / 1000)
            house.later(waits[-1])
        assert waits == [1, 2, 4]


async def test_d5_the_halves_of_a_leader_selected_job_keep_its_batch(tmp_path: Path) -> None:
    """Their place in the batch is taken, and the other jobs of the batch count on it."""
    refused: list[bytes] = []

    def script(pair: TaskPair, request: Request) -> bytes:
        if request.method == "POST" and not refused:
            refused.append(request.body)
            return answer(413)
        return honest(pair, request)

    pair = task_pair(batch_mode=BatchMode.LEADER_SELECTED, min_batch_size=4)
    async with open_leader(tmp_path, pair, script) as house:
        await house.know_peer()
        await house.upload(4)
        await house.create()
        [(batch_id,)] = await house.rows("SELECT batch_id FROM outstanding_batches")
        while await house.step():
            house.later()
        assert await house.rows("SELECT bucket, n FROM batch_shares") == [(batch_id, 2)] * 2


async def test_d5_a_report_that_stays_too_early_is_sent_more_and_more_rarely(
    tmp_path: Path,
) -> None:
    """The Helper's clock may be wrong for days; each time its reports wait twice as long."""

    def script(pair: TaskPair, request: Request) -> bytes:
        rules = ReportRules(
            too_early_after=TIME - 1, task_start=0, task_end=END_OF_TIME, expired_before=0
        )
        return ready(helper_response(pair, request.body, rules))

    limits = Leader(min_job_size=1, max_wait=0, retry_min=1, retry_max=600)
    async with open_leader(tmp_path, task_pair(), script, config=limits) as house:
        await house.upload(2)
        waits = []
        for _ in range(4):
            await house.create()
            assert await house.step() == 1
            [(state, run_at)] = await house.rows("SELECT state, run_at FROM report_chunks")
            assert state == "waiting"
            waits.append((run_at - house.context.now()) / 1000)
            house.later(waits[-1])
        assert waits == [1, 2, 4, 8]


async def test_d6_an_interval_of_which_a_part_has_expired_is_not_frozen(tmp_path: Path) -> None:
    """While it waited, its first hour expired; the Helper would refuse it."""
    async with open_databases(tmp_path) as pair:
        job = pair.query(interval_query(TIME, 2))
        pair.aggregate([1, 0, 1], time=TIME + 1)
        pair.leader = replace(pair.leader, expired_before=TIME + 1)
        pair.advance(job)
        ended = pair.job(job)
        assert (ended.state, ended.error, ended.detail) == ("failed", "batchInvalid", "expired")


async def test_d6_a_query_that_expired_while_it_waited_can_still_be_asked_why(
    tmp_path: Path,
) -> None:
    """The job is older than what is kept, but its failure is new to the Collector."""
    async with open_databases(tmp_path) as pair:
        settings = TaskSettings(report_expiry_age=2 * PRECISION)
        pair.leader = replace(pair.leader, settings=settings)
        job = pair.query(QUERY)
        pair.clock.advance(5 * PRECISION)
        pair.advance(job)
        mark = pair.leader.mark_at(pair.clock.instant())
        found = pair.store.read_sync(collections.by_id, pair.leader.task_pk, job.id, mark)
        assert found is not None
        assert (found.error, found.detail) == ("batchInvalid", "expired")


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


async def test_d6_a_job_stays_while_a_chunk_is_its_own(tmp_path: Path) -> None:
    """The garbage collector deletes chunks before their jobs; a stop may come between its steps."""
    async with open_leader(tmp_path, task_pair(), honest) as house:
        await house.upload(1)
        await house.create()
        await house.step()
        task_pk, run = house.task.task_pk, house.context.run
        assert await run(drop_leader_jobs, task_pk, [1]) == Freed(0)
        assert (await run(drop_chunks, task_pk, [1], TIME + 1, NOW)).rows == 1
        assert await run(drop_leader_jobs, task_pk, [1]) == Freed(1)


async def test_d6_the_mark_rises_with_the_safe_clock_and_does_not_fall(tmp_path: Path) -> None:
    """A report is refused before the garbage collector has been there, and after the machine's
    clock was set back or the age was raised; a jump of that clock ahead expires nothing.
    """
    pair = task_pair(settings=TaskSettings(report_expiry_age=2 * PRECISION))
    async with open_leader(tmp_path, pair, honest) as house:
        settings = house.task.settings

        async def refused(time: int) -> bool:
            report = b"".join(make_reports(pair, [1], times=[time]))
            task = replace(house.context.tasks.all()[0], settings=settings)
            result = await house.context.uploads.submit(task, report)
            return result.upload_errors[16:] == bytes([ReportError.REPORT_DROPPED])

        house.clock.jump(30 * 24 * 3600)
        assert not await refused(TIME)
        house.clock.jump(-30 * 24 * 3600)
        house.later(3 * PRECISION)
        assert await refused(TIME)
        await GarbageCollector(house.context).collect()
        house.clock.jump(-3 * PRECISION)
        assert await refused(TIME)
        settings = TaskSettings(report_expiry_age=365 * 24 * 3600)
        assert await refused(TIME)
        assert not await refused(TIME + 1)


async def test_d7_a_replay_means_delivered_to_the_client_that_sent_it(
    nursery: trio.Nursery,
) -> None:
    """The Leader stores the request, and its answer is lost."""
    lost = iter([b""])
    aggregators = ScriptedAggregators(
        lambda request: next(lost, None) if request.method == "POST" else None
    )
    files = await aggregators.serve(nursery)
    patience = Patience(attempts=3, minimum=0.001, maximum=0.001)
    async with Client(files.client, patience=patience, clock=lambda: CLIENT_NOW) as client:
        assert await client.upload([0, 1]) == Uploaded(2, ())
    assert aggregators.accepted == 2
    nursery.cancel_scope.cancel()
