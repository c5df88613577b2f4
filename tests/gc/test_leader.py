"""What expires on a Leader: chunks, jobs, contributions; each below the mark and above it.

Rules C8, D2, D3, D6. Reports expire two hours, two time precisions, after theirs was over: three
hours after ``NOW`` those of ``TIME`` have, five hours after it those of ``TIME + 2``.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from dapd.commits.leader_jobs import count_send, expire_job
from dapd.datastore import Tx, tasks
from dapd.datastore.leader_jobs import LeaseLost
from dapd.driver import aggregation
from dapd.driver.step import Step
from dapd.gc.loop import GarbageCollector, raise_marks
from dapd.messages.common import BatchMode
from dapd.protocol.task import Task, TaskSettings
from dapd.reports import ReportError, parse_upload_errors, split_ids
from tests.build import PRECISION, TIME, Pair, make_reports, report_ids, task_pair
from tests.gc.looking import rebuilt, rows
from tests.leaderhouse import House, helper_response, open_house, ready
from tests.peer import Request, answer

QUICK_EXPIRY = TaskSettings(report_expiry_age=2 * PRECISION)


def honest(pair: Pair, request: Request) -> bytes:
    if request.method == "DELETE":
        return answer(204)
    return ready(helper_response(pair, request.body), Location="/helper/somewhere")


def silent(pair: Pair, request: Request) -> bytes:
    return answer(500)


async def collect(house: House) -> dict[str, int]:
    """Run one round. Return how many rows it deleted."""
    gone = await GarbageCollector(house.context).collect()
    return {name: n for counts in gone.values() for name, n in counts.items() if n}


async def mark(house: House) -> int:
    return int((await house.rows("SELECT expired_before FROM tasks"))[0][0])


async def upload(house: House, count: int, time: int = TIME) -> bytes:
    """Upload reports of this time. Return their ids."""
    ids = report_ids(count)
    await house.upload(count, ids=ids, times=[time] * count)
    return ids


def index(house: House, ids: bytes) -> tuple[int, bytes]:
    """Return (how many ids, which of these) the replay index has; a restart gives the same (D2)."""
    store = house.context.datastore
    live = len(store.replay), store.replay.peek(house.task.task_pk, ids)
    assert rebuilt(store.path, house.task.task_pk, ids) == live
    return live


async def test_nothing_expires_without_an_age(tmp_path: Path) -> None:
    """A task without one keeps everything for ever, however far the clock advances."""
    async with open_house(tmp_path, task_pair(), honest) as house:
        await upload(house, 3)
        await house.create()
        await house.step()
        before = rows(house.context.datastore)
        house.later(1e9)
        assert await collect(house) == {}
        assert rows(house.context.datastore) == before


async def test_d6_reports_that_no_job_took_in_time_are_counted_and_their_ids_freed(
    tmp_path: Path,
) -> None:
    """They are counted once, however often the collector runs; reports above the mark stay."""
    async with open_house(tmp_path, task_pair(settings=QUICK_EXPIRY), honest) as house:
        old = await upload(house, 3)
        house.later(2 * PRECISION)
        new = await upload(house, 2, TIME + 2)
        assert await collect(house) == {}
        house.later(PRECISION)
        assert await collect(house) == {"chunks": 1}
        assert await mark(house) == TIME + 1
        assert rows(house.context.datastore) == {"report_chunks": 1, "chunk_rows": 1}
        assert (await house.counters())["aggregate_report_dropped"] == 3
        assert index(house, old + new) == (2, bytes([0, 0, 0, 1, 1]))
        assert await collect(house) == {}
        assert (await house.counters())["aggregate_report_dropped"] == 3


async def test_c8_what_the_creator_has_dropped_is_not_counted_again(tmp_path: Path) -> None:
    """The creator drops expired chunks itself, whether the collector has run or not."""
    async with open_house(tmp_path, task_pair(settings=QUICK_EXPIRY), honest) as house:
        await upload(house, 3)
        house.later(3 * PRECISION)
        await house.create()
        assert await house.states() == {}
        assert (await house.counters())["aggregate_report_dropped"] == 3
        assert await collect(house) == {"chunks": 1}
        assert (await house.counters())["aggregate_report_dropped"] == 3


async def test_d6_all_of_a_finished_job_goes(tmp_path: Path) -> None:
    """Its chunks, ids, row and contributions go; only the counters stay."""
    async with open_house(tmp_path, task_pair(settings=QUICK_EXPIRY), honest) as house:
        ids = await upload(house, 5)
        await house.create()
        await house.step()
        assert index(house, ids) == (5, bytes([1] * 5))
        house.later(3 * PRECISION)
        assert await collect(house) == {"chunks": 1, "jobs": 1, "contributions": 1}
        assert rows(house.context.datastore) == {}
        assert index(house, ids) == (0, bytes(5))
        assert await house.counters() == {
            "upload_accepted": 5,
            "aggregate_finished": 5,
            "contribution_dropped": 5,
        }


async def test_d6_a_report_is_not_accepted_again_once_its_id_is_forgotten(tmp_path: Path) -> None:
    """It is below the mark, so it is dropped and can't count twice."""
    async with open_house(tmp_path, task_pair(settings=QUICK_EXPIRY), honest) as house:
        reports = await house.upload(2)
        await house.create()
        await house.step()
        house.later(3 * PRECISION)
        await collect(house)
        task = house.context.tasks.by_pk(house.task.task_pk)
        again = await house.context.uploads.submit(task, b"".join(reports))
        errors = [error for _, error in parse_upload_errors(again.upload_errors)]
        assert errors == [ReportError.REPORT_DROPPED] * 2
        assert rows(house.context.datastore) == {}


async def test_d6_a_job_lives_until_its_newest_report_expires_then_its_reports_are_lost(
    tmp_path: Path,
) -> None:
    """Its older chunks stay with it, because its stored request contains them."""
    async with open_house(tmp_path, task_pair(settings=QUICK_EXPIRY), silent) as house:
        old = await upload(house, 3)
        house.later(2 * PRECISION)
        new = await upload(house, 2, TIME + 2)
        await house.create()
        await house.step()
        house.later(PRECISION)
        before = rows(house.context.datastore)
        assert await collect(house) == {}
        assert rows(house.context.datastore) == before
        assert index(house, old + new)[0] == 5
        house.later(2 * PRECISION)
        assert await collect(house) == {"expired_jobs": 1, "chunks": 2, "jobs": 1}
        assert rows(house.context.datastore) == {}
        assert (await house.counters())["aggregate_lost"] == 5
        assert "aggregate_report_dropped" not in await house.counters()
        assert index(house, old + new)[0] == 0


async def test_d6_an_expired_job_that_was_never_sent_is_not_lost_but_dropped(
    tmp_path: Path,
) -> None:
    """The Helper can't have aggregated it, so both sides agree about its batch."""
    async with open_house(tmp_path, task_pair(settings=QUICK_EXPIRY), silent) as house:
        await upload(house, 3)
        await house.create()
        house.later(3 * PRECISION)
        assert (await collect(house))["expired_jobs"] == 1
        assert (await house.counters())["aggregate_report_dropped"] == 3
        assert "aggregate_lost" not in await house.counters()


async def test_d6_an_expired_job_is_taken_from_whoever_has_it_leased(tmp_path: Path) -> None:
    """The step under way finds its lease lost, even if the row is gone."""
    async with open_house(tmp_path, task_pair(settings=QUICK_EXPIRY), silent) as house:
        await upload(house, 3)
        await house.create()
        await house.step()
        house.later()
        [lease] = await house.lease()
        house.later(3 * PRECISION)
        await collect(house)
        assert rows(house.context.datastore) == {}
        with pytest.raises(LeaseLost):
            await house.context.run(count_send, lease, house.task, house.context.instant())


async def test_d6_a_job_that_expires_between_its_lease_and_its_start_is_not_started(
    tmp_path: Path,
) -> None:
    """The Leader computes and sends nothing for chunks that are gone."""
    async with open_house(tmp_path, task_pair(settings=QUICK_EXPIRY), honest) as house:
        await upload(house, 3)
        await house.create()
        [lease] = await house.lease()
        house.later(3 * PRECISION)
        await house.context.run(expire_job, lease.pk, house.context.now())
        peer = house.context.peers.at(house.task.configuration.helper_aggregator_endpoint)
        await aggregation.run(house.context, Step(lease, house.task, house.slots, peer))
        assert await house.states() == {"expired": 1}
        assert house.helper.requests == []
        assert await house.counters() == {"upload_accepted": 3, "aggregate_report_dropped": 3}


async def test_d6_chunks_of_a_halved_job_keep_their_ids_until_they_expire(tmp_path: Path) -> None:
    """A chunk that was cut is now two others; when one of those expires, it frees its own ids
    alone.
    """

    def script(pair: Pair, request: Request) -> bytes:
        if request.method == "DELETE":
            return answer(204)
        refusal = b'{"type": "urn:ietf:params:ppm:dap:error:invalidMessage", "status": 400}'
        return answer(400, refusal, Content_Type="application/problem+json")

    async with open_house(tmp_path, task_pair(settings=QUICK_EXPIRY), script) as house:

        def know(tx: Tx) -> None:
            tasks.note_peer_accepted(tx, house.task.task_pk)

        await house.context.run(know)
        house.context.tasks.note_peer_accepted(house.task)
        ids = await upload(house, 4)
        await house.create()
        await house.step()
        assert await house.states() == {"abandoned": 1, "assigned": 2}
        house.later(PRECISION)
        assert await collect(house) == {}
        assert index(house, ids)[0] == 4
        house.later(2 * PRECISION)
        gone = await collect(house)
        assert gone == {"expired_jobs": 2, "chunks": 2, "jobs": 3}
        assert index(house, ids)[0] == 0


async def test_d6_killed_between_mark_and_deletion_the_next_round_goes_on(tmp_path: Path) -> None:
    """The mark alone hides what is below it; nothing else may be missing yet."""
    async with open_house(tmp_path, task_pair(settings=QUICK_EXPIRY), honest) as house:
        ids = await upload(house, 2)
        await house.create()
        await house.step()
        house.later(3 * PRECISION)
        before = rows(house.context.datastore)
        await house.context.run(raise_marks, {house.task.task_pk: TIME + 1})
        assert rows(house.context.datastore) == before
        assert index(house, ids)[0] == 2
        assert await collect(house) == {"chunks": 1, "jobs": 1, "contributions": 1}
        assert rows(house.context.datastore) == {}


async def test_d6_the_mark_never_falls(tmp_path: Path) -> None:
    """Neither a longer age nor a clock that is set back makes expired reports visible again."""
    async with open_house(tmp_path, task_pair(settings=QUICK_EXPIRY), honest) as house:
        house.later(3 * PRECISION)
        await collect(house)
        assert await mark(house) == TIME + 1

        def live_for_a_year(tx: Tx) -> None:
            tasks.set_settings(tx, house.task.task_pk, TaskSettings(report_expiry_age=31_536_000))

        await house.context.run(live_for_a_year)
        await house.context.tasks.reload()
        house.later(-2 * PRECISION)
        await collect(house)
        assert await mark(house) == TIME + 1
        task: Task = house.context.tasks.by_pk(house.task.task_pk)
        assert task.expired_before_at(house.context.instant()) == TIME + 1


async def test_e2_chunks_from_the_future_are_due_when_the_clock_went_back(tmp_path: Path) -> None:
    """No report waits for the clock to reach that time again."""
    async with open_house(tmp_path, task_pair(), honest) as house:
        await upload(house, 3)
        house.later(-PRECISION)
        await house.create()
        assert await house.states() == {"assigned": 1}


async def test_c6_an_empty_batch_goes_with_the_job_that_was_to_fill_it(tmp_path: Path) -> None:
    """No job will contribute to it, and no collection will ask for it."""
    pair = task_pair(
        settings=QUICK_EXPIRY, batch_mode=BatchMode.LEADER_SELECTED, min_batch_size=100
    )
    async with open_house(tmp_path, pair, honest) as house:
        reports = make_reports(house.pair, [1, 1], tamper_with=[0, 1])
        await house.context.uploads.submit(house.task, b"".join(reports))
        await house.create()
        await house.step()
        assert rows(house.context.datastore)["outstanding_batches"] == 1
        house.later(3 * PRECISION)
        await collect(house)
        assert rows(house.context.datastore) == {}


async def test_c6_a_batch_goes_whole_by_its_newest_report(tmp_path: Path) -> None:
    """Its older reports stay as long; then all of it goes, and the creator opens another one."""
    pair = task_pair(
        settings=QUICK_EXPIRY, batch_mode=BatchMode.LEADER_SELECTED, min_batch_size=100
    )
    async with open_house(tmp_path, pair, honest) as house:
        await upload(house, 3)
        await house.create()
        await house.step()
        house.later(2 * PRECISION)
        await upload(house, 2, TIME + 2)
        await house.create()
        await house.step()
        [(first,)] = await house.rows("SELECT batch_id FROM outstanding_batches")
        house.later(PRECISION)
        await collect(house)
        assert await house.aggregated() == 5
        house.later(2 * PRECISION)
        await upload(house, 1, TIME + 5)
        await house.create()  # before the collector has run: the old batch takes nothing more
        await house.step()
        [(second,)] = await house.rows(
            f"SELECT batch_id FROM outstanding_batches WHERE batch_id <> x'{first.hex()}'"  # noqa: S608
        )
        await collect(house)
        assert await house.rows("SELECT bucket, n FROM batch_shares") == [(second, 1)]
        assert await house.rows("SELECT batch_id FROM outstanding_batches") == [(second,)]


async def test_d6_many_small_chunks_go_in_steps(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No transaction occupies the writer for all of them."""
    async with open_house(tmp_path, task_pair(settings=QUICK_EXPIRY), honest) as house:
        ids = b"".join([await upload(house, 1) for _ in range(100)])
        house.later(3 * PRECISION)
        steps = []
        run = house.context.run

        async def noted(fn: object, *args: object) -> object:
            steps.append(fn.__name__)  # type: ignore[attr-defined]
            return await run(fn, *args)  # type: ignore[arg-type]

        monkeypatch.setattr(house.context, "run", noted)
        assert (await collect(house))["chunks"] == len(split_ids(ids))
        assert steps.count("drop_past_chunks") >= 3
        assert (await house.counters())["aggregate_report_dropped"] == 100
