"""What expires on a Leader: chunks, jobs, contributions; each below the mark and above it.

Rules C8, D2, D3, D6. Reports expire two hours, two time precisions, after theirs was over: three
hours after ``NOW`` those of ``TIME`` have, five hours after it those of ``TIME + 2``.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from dapd.commits.leader_jobs import count_send, expire_job
from dapd.config import Leader
from dapd.datastore import Tx, tasks
from dapd.datastore.leader_jobs import LeaseLost
from dapd.driver import aggregation
from dapd.driver.step import Step
from dapd.gc.loop import GarbageCollector, raise_marks
from dapd.messages.common import BatchMode
from dapd.protocol.task import Task, TaskSettings
from dapd.reports import ReportError, parse_upload_errors
from tests.clock import PRECISION, TIME
from tests.gc.row_counts import rebuilt_replay_index, row_counts
from tests.leader_harness import LeaderHarness, helper_response, open_leader, ready
from tests.raw_http import Request, answer
from tests.task_pair import TaskPair, make_reports, report_ids, task_pair

QUICK_EXPIRY = TaskSettings(report_expiry_age=2 * PRECISION)


def honest(pair: TaskPair, request: Request) -> bytes:
    if request.method == "DELETE":
        return answer(204)
    return ready(helper_response(pair, request.body), Location="/helper/somewhere")


def silent(pair: TaskPair, request: Request) -> bytes:
    return answer(500)


async def collect(leader: LeaderHarness) -> dict[str, int]:
    """Run one round. Return how many rows it deleted."""
    gone = await GarbageCollector(leader.context).collect()
    return {name: n for counts in gone.values() for name, n in counts.items() if n}


async def mark(leader: LeaderHarness) -> int:
    return int((await leader.rows("SELECT expired_before FROM tasks"))[0][0])


async def upload(leader: LeaderHarness, count: int, time: int = TIME) -> bytes:
    """Upload reports of this time. Return their ids."""
    ids = report_ids(count)
    await leader.upload(count, ids=ids, times=[time] * count)
    return ids


def index(leader: LeaderHarness, ids: bytes) -> tuple[int, bytes]:
    """Return (how many ids, which of these) the replay index has; a restart gives the same (D2)."""
    store = leader.context.datastore
    live = len(store.replay), store.replay.peek(leader.task.task_pk, ids)
    assert rebuilt_replay_index(store.path, leader.task.task_pk, ids) == live
    return live


@pytest.mark.parametrize(("answered", "deleted"), [(answer(204), 2), (answer(500), 1), (b"", 1)])
async def test_d6_expired_jobs_are_deleted_at_the_helper_unless_it_is_away(
    tmp_path: Path, answered: bytes, deleted: int
) -> None:
    """It can clean up before they expire there, too; the collector doesn't wait for it twice."""

    def script(_: TaskPair, request: Request) -> bytes:
        if request.method == "DELETE":
            return answered
        return answer(200, Location=f"/helper/{len(leader.helper.requests)}", Retry_After="99999")

    async with open_leader(tmp_path, task_pair(settings=QUICK_EXPIRY), script) as leader:
        for _ in range(2):
            await upload(leader, 3)
            await leader.create()
            await leader.step()
        assert await leader.states() == {"polling": 2}
        leader.later(3 * PRECISION)
        await collect(leader)
        assert (await leader.counters())["aggregate_lost"] == 6
        sent = [each.target for each in leader.helper.requests if each.method == "DELETE"]
        assert sent == ["/helper/1", "/helper/2"][:deleted]
        assert row_counts(leader.context.datastore) == {}


async def test_a_sweep_deletes_a_bounded_number_of_jobs_at_the_helper(tmp_path: Path) -> None:
    """It must not take long: the Helper deletes the others itself."""

    def script(_: TaskPair, request: Request) -> bytes:
        if request.method == "DELETE":
            return answer(204)
        return answer(200, Location="/helper/job", Retry_After="99999")

    settings = TaskSettings(report_expiry_age=2 * PRECISION, batch_target_size=1000)
    task = task_pair(batch_mode=BatchMode.LEADER_SELECTED, settings=settings)
    tiny = Leader(min_job_size=1, max_job_size=1, max_wait=0)
    async with open_leader(tmp_path, task, script, config=tiny) as leader:
        await upload(leader, 101)
        while await leader.states() != {"polling": 101}:
            await leader.create()
            await leader.step()
        leader.later(3 * PRECISION)
        await collect(leader)
        deletions = [each for each in leader.helper.requests if each.method == "DELETE"]
        assert len(deletions) == 100
        assert row_counts(leader.context.datastore) == {}


async def test_nothing_expires_without_an_age(tmp_path: Path) -> None:
    """A task without one keeps everything for ever, however far the clock advances."""
    async with open_leader(tmp_path, task_pair(), honest) as leader:
        await upload(leader, 3)
        await leader.create()
        await leader.step()
        before = row_counts(leader.context.datastore)
        leader.later(1e9)
        assert await collect(leader) == {}
        assert row_counts(leader.context.datastore) == before


async def test_d6_reports_that_no_job_took_in_time_are_counted_and_their_ids_freed(
    tmp_path: Path,
) -> None:
    """They are counted once, however often the collector runs; reports above the mark stay."""
    async with open_leader(tmp_path, task_pair(settings=QUICK_EXPIRY), honest) as leader:
        old = await upload(leader, 3)
        leader.later(2 * PRECISION)
        new = await upload(leader, 2, TIME + 2)
        assert await collect(leader) == {}
        leader.later(PRECISION)
        assert await collect(leader) == {"chunks": 1}
        assert await mark(leader) == TIME + 1
        assert row_counts(leader.context.datastore) == {"report_chunks": 1, "chunk_rows": 1}
        assert (await leader.counters())["aggregate_report_dropped"] == 3
        assert index(leader, old + new) == (2, bytes([0, 0, 0, 1, 1]))
        assert await collect(leader) == {}
        assert (await leader.counters())["aggregate_report_dropped"] == 3


async def test_c8_what_the_creator_has_dropped_is_not_counted_again(tmp_path: Path) -> None:
    """The creator drops expired chunks itself, whether the collector has run or not."""
    async with open_leader(tmp_path, task_pair(settings=QUICK_EXPIRY), honest) as leader:
        await upload(leader, 3)
        leader.later(3 * PRECISION)
        await leader.create()
        assert await leader.states() == {}
        assert (await leader.counters())["aggregate_report_dropped"] == 3
        assert await collect(leader) == {"chunks": 1}
        assert (await leader.counters())["aggregate_report_dropped"] == 3


async def test_d6_all_of_a_finished_job_goes(tmp_path: Path) -> None:
    """Its chunks, ids, row and contributions go; only the counters stay."""
    async with open_leader(tmp_path, task_pair(settings=QUICK_EXPIRY), honest) as leader:
        ids = await upload(leader, 5)
        await leader.create()
        await leader.step()
        assert index(leader, ids) == (5, bytes([1] * 5))
        leader.later(3 * PRECISION)
        assert await collect(leader) == {"chunks": 1, "jobs": 1, "contributions": 1}
        assert row_counts(leader.context.datastore) == {}
        assert index(leader, ids) == (0, bytes(5))
        assert await leader.counters() == {
            "upload_accepted": 5,
            "aggregate_finished": 5,
            "contribution_dropped": 5,
        }


async def test_d6_a_report_is_not_accepted_again_once_its_id_is_forgotten(tmp_path: Path) -> None:
    """It is below the mark, so it is dropped and can't count twice."""
    async with open_leader(tmp_path, task_pair(settings=QUICK_EXPIRY), honest) as leader:
        reports = await leader.upload(2)
        await leader.create()
        await leader.step()
        leader.later(3 * PRECISION)
        await collect(leader)
        task = leader.context.tasks.by_pk(leader.task.task_pk)
        again = await leader.context.uploads.submit(task, b"".join(reports))
        errors = [error for _, error in parse_upload_errors(again.upload_errors)]
        assert errors == [ReportError.REPORT_DROPPED] * 2
        assert row_counts(leader.context.datastore) == {}


async def test_d6_a_job_lives_until_its_newest_report_expires_then_its_reports_are_lost(
    tmp_path: Path,
) -> None:
    """Its older chunks stay with it, because its stored request contains them."""
    async with open_leader(tmp_path, task_pair(settings=QUICK_EXPIRY), silent) as leader:
        old = await upload(leader, 3)
        leader.later(2 * PRECISION)
        new = await upload(leader, 2, TIME + 2)
        await leader.create()
        await leader.step()
        leader.later(PRECISION)
        before = row_counts(leader.context.datastore)
        assert await collect(leader) == {}
        assert row_counts(leader.context.datastore) == before
        assert index(leader, old + new)[0] == 5
        leader.later(2 * PRECISION)
        assert await collect(leader) == {"expired_jobs": 1, "chunks": 2, "jobs": 1}
        assert row_counts(leader.context.datastore) == {}
        assert (await leader.counters())["aggregate_lost"] == 5
        assert "aggregate_report_dropped" not in await leader.counters()
        assert index(leader, old + new)[0] == 0


async def test_d6_an_expired_job_that_was_never_sent_is_not_lost_but_dropped(
    tmp_path: Path,
) -> None:
    """The Helper can't have aggregated it, so both sides agree about its batch."""
    async with open_leader(tmp_path, task_pair(settings=QUICK_EXPIRY), silent) as leader:
        await upload(leader, 3)
        await leader.create()
        leader.later(3 * PRECISION)
        assert (await collect(leader))["expired_jobs"] == 1
        assert (await leader.counters())["aggregate_report_dropped"] == 3
        assert "aggregate_lost" not in await leader.counters()


async def test_d6_an_expired_job_is_taken_from_whoever_has_it_leased(tmp_path: Path) -> None:
    """The step under way finds its lease lost, even if the row is gone."""
    async with open_leader(tmp_path, task_pair(settings=QUICK_EXPIRY), silent) as leader:
        await upload(leader, 3)
        await leader.create()
        await leader.step()
        leader.later()
        [lease] = await leader.lease()
        leader.later(3 * PRECISION)
        await collect(leader)
        assert row_counts(leader.context.datastore) == {}
        with pytest.raises(LeaseLost):
            await leader.context.run(count_send, lease, leader.task, leader.context.instant())


async def test_d6_a_job_that_expires_between_its_lease_and_its_start_is_not_started(
    tmp_path: Path,
) -> None:
    """The Leader computes and sends nothing for chunks that are gone."""
    async with open_leader(tmp_path, task_pair(settings=QUICK_EXPIRY), honest) as leader:
        await upload(leader, 3)
        await leader.create()
        [lease] = await leader.lease()
        leader.later(3 * PRECISION)
        await leader.context.run(expire_job, lease.pk, leader.context.now())
        peer = leader.context.peers.at(leader.task.configuration.helper_aggregator_endpoint)
        await aggregation.run(leader.context, Step(lease, leader.task, leader.slots, peer))
        assert await leader.states() == {"expired": 1}
        assert leader.helper.requests == []
        assert await leader.counters() == {"upload_accepted": 3, "aggregate_report_dropped": 3}


async def test_d6_chunks_of_a_halved_job_keep_their_ids_until_they_expire(tmp_path: Path) -> None:
    """A chunk that was cut is now two others; when one of those expires, it frees its own ids
    alone.
    """

    def script(pair: TaskPair, request: Request) -> bytes:
        if request.method == "DELETE":
            return answer(204)
        refusal = b'{"type": "urn:ietf:params:ppm:dap:error:invalidMessage", "status": 400}'
        return answer(400, refusal, Content_Type="application/problem+json")

    async with open_leader(tmp_path, task_pair(settings=QUICK_EXPIRY), script) as leader:
        await leader.know_peer()
        ids = await upload(leader, 4)
        await leader.create()
        await leader.step()
        assert await leader.states() == {"abandoned": 1, "assigned": 2}
        leader.later(PRECISION)
        assert await collect(leader) == {}
        assert index(leader, ids)[0] == 4
        leader.later(2 * PRECISION)
        gone = await collect(leader)
        assert gone == {"expired_jobs": 2, "chunks": 2, "jobs": 3}
        assert index(leader, ids)[0] == 0


async def test_d6_killed_between_mark_and_deletion_the_next_round_goes_on(tmp_path: Path) -> None:
    """The mark alone hides what is below it; nothing else may be missing yet."""
    async with open_leader(tmp_path, task_pair(settings=QUICK_EXPIRY), honest) as leader:
        ids = await upload(leader, 2)
        await leader.create()
        await leader.step()
        leader.later(3 * PRECISION)
        before = row_counts(leader.context.datastore)
        await leader.context.run(raise_marks, {leader.task.task_pk: TIME + 1})
        assert row_counts(leader.context.datastore) == before
        assert index(leader, ids)[0] == 2
        assert await collect(leader) == {"chunks": 1, "jobs": 1, "contributions": 1}
        assert row_counts(leader.context.datastore) == {}


async def test_d6_the_mark_never_falls(tmp_path: Path) -> None:
    """Neither a longer age nor a clock that is set back makes expired reports visible again."""
    async with open_leader(tmp_path, task_pair(settings=QUICK_EXPIRY), honest) as leader:
        leader.later(3 * PRECISION)
        await collect(leader)
        assert await mark(leader) == TIME + 1

        def live_for_a_year(tx: Tx) -> None:
            tasks.set_settings(tx, leader.task.task_pk, TaskSettings(report_expiry_age=31_536_000))

        await leader.context.run(live_for_a_year)
        await leader.context.tasks.reload()
        leader.later(-2 * PRECISION)
        await collect(leader)
        assert await mark(leader) == TIME + 1
        task: Task = leader.context.tasks.by_pk(leader.task.task_pk)
        assert task.expired_before_at(leader.context.instant()) == TIME + 1


async def test_e2_chunks_from_the_future_are_due_when_the_clock_went_back(tmp_path: Path) -> None:
    """No report waits for the clock to reach that time again."""
    async with open_leader(tmp_path, task_pair(), honest) as leader:
        await upload(leader, 3)
        leader.later(-PRECISION)
        await leader.create()
        assert await leader.states() == {"assigned": 1}


async def test_c6_an_empty_batch_goes_with_the_job_that_was_to_fill_it(tmp_path: Path) -> None:
    """No job will contribute to it, and no collection will ask for it."""
    pair = task_pair(
        settings=QUICK_EXPIRY, batch_mode=BatchMode.LEADER_SELECTED, min_batch_size=100
    )
    async with open_leader(tmp_path, pair, honest) as leader:
        reports = make_reports(leader.pair, [1, 1], tamper_with=[0, 1])
        await leader.context.uploads.submit(leader.task, b"".join(reports))
        await leader.create()
        await leader.step()
        assert row_counts(leader.context.datastore)["outstanding_batches"] == 1
        leader.later(3 * PRECISION)
        await collect(leader)
        assert row_counts(leader.context.datastore) == {}


async def test_c6_a_batch_goes_whole_by_its_newest_report(tmp_path: Path) -> None:
    """Its older reports stay as long; then all of it goes, and the creator opens another one."""
    pair = task_pair(
        settings=QUICK_EXPIRY, batch_mode=BatchMode.LEADER_SELECTED, min_batch_size=100
    )
    async with open_leader(tmp_path, pair, honest) as leader:
        await upload(leader, 3)
        await leader.create()
        await leader.step()
        leader.later(2 * PRECISION)
        await upload(leader, 2, TIME + 2)
        await leader.create()
        await leader.step()
        [(first,)] = await leader.rows("SELECT batch_id FROM outstanding_batches")
        leader.later(PRECISION)
        await collect(leader)
        assert await leader.aggregated() == 5
        leader.later(2 * PRECISION)
        await upload(leader, 1, TIME + 5)
        await leader.create()  # before the collector has run: the old batch takes nothing more
        await leader.step()
        [(second,)] = await leader.rows(
            f"SELECT batch_id FROM outstanding_batches WHERE batch_id <> x'{first.hex()}'"  # noqa: S608
        )
        await collect(leader)
        assert await leader.rows("SELECT bucket, n FROM batch_shares") == [(second, 1)]
        assert await leader.rows("SELECT batch_id FROM outstanding_batches") == [(second,)]


async def test_d6_many_small_chunks_go_in_steps(tmp_path: Path) -> None:
    """No transaction occupies the writer for all of them."""
    async with open_leader(tmp_path, task_pair(settings=QUICK_EXPIRY), honest) as leader:
        for _ in range(100):
            await upload(leader, 1)
        leader.later(3 * PRECISION)
        assert (await collect(leader))["chunks"] == 100
        registry = leader.context.metrics.registry
        steps = registry.get_sample_value(
            "dapd_transaction_seconds_count", {"name": "pace.drop_past_chunks"}
        )
        # The first takes 16 chunks, and each at most twice as many as the one before.
        assert steps is not None
        assert steps >= 3
        assert (await leader.counters())["aggregate_report_dropped"] == 100
