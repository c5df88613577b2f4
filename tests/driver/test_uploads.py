"""The upload queue and its loop, with the real extension and a real database."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import trio
import trio.testing

from dapd.commits.tasks import set_task_state
from dapd.config import Leader
from dapd.crypto import HpkeKeypair
from dapd.datastore import Tx, keys
from dapd.driver import uploads
from dapd.errors import Abort
from dapd.protocol.task import TaskState
from dapd.reports import ReportError, parse_upload_errors
from dapd.runtime.disk import Disk
from dapd.runtime.upload_queue import UploadQueue
from tests.clock import NOW
from tests.contexts import NativeGate
from tests.leader_harness import QUICK, honest, open_leader
from tests.raw_http import Request, answer
from tests.task_pair import X25519, TaskPair, make_reports, task_pair


def silent(_: TaskPair, __: Request) -> bytes:
    return answer(500)


async def test_what_has_queued_is_one_transaction(tmp_path: Path) -> None:
    """Requests that wait together are stored together, and each gets its own answer."""
    async with open_leader(tmp_path, task_pair(), silent) as leader:
        reports = make_reports(leader.pair, [1] * 20)
        answers: dict[int, bytes] = {}

        async def upload(place: int) -> None:
            result = await leader.context.uploads.submit(leader.task, reports[place])
            answers[place] = result.upload_errors

        gate = NativeGate(leader.context)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(upload, 0)
            await gate.arrived()
            for place in range(1, 20):
                nursery.start_soon(upload, place)
            await trio.testing.wait_all_tasks_blocked()
            gate.open()
        assert answers == dict.fromkeys(range(20), b"")
        assert await leader.rows("SELECT count(*) FROM upload_groups") == [(2,)]
        assert await leader.rows("SELECT sum(n) FROM report_chunks") == [(20,)]


async def test_i1_the_same_report_twice_at_once_is_accepted_once(tmp_path: Path) -> None:
    """I1: two identical uploads at the same time, one is accepted, one is a replay."""
    async with open_leader(tmp_path, task_pair(), silent) as leader:
        (report,) = make_reports(leader.pair, [1])
        codes: list[int] = []

        async def upload() -> None:
            result = await leader.context.uploads.submit(leader.task, report)
            codes.extend([code for _, code in parse_upload_errors(result.upload_errors)] or [0])

        async with trio.open_nursery() as nursery:
            nursery.start_soon(upload)
            nursery.start_soon(upload)
        assert sorted(codes) == [0, ReportError.REPORT_REPLAYED]


async def test_a2_i2_an_upload_whose_client_went_away_is_stored_all_the_same(
    tmp_path: Path,
) -> None:
    """A2: admitted work reaches its commit even if the connection breaks."""
    async with open_leader(tmp_path, task_pair(), silent) as leader:
        (report,) = make_reports(leader.pair, [1])
        with trio.CancelScope() as scope:
            scope.cancel()
            await leader.context.uploads.submit(leader.task, report)
        result = await leader.context.uploads.submit(leader.task, report)
        assert [code for _, code in parse_upload_errors(result.upload_errors)] == [2]


async def test_f1_an_unknown_config_id_reloads_the_keyring_before_it_rejects(
    tmp_path: Path, mock_clock: trio.testing.MockClock
) -> None:
    """F1: the first report finds a key that another process has added; reloads are bounded."""
    async with open_leader(tmp_path, task_pair(), silent) as leader:
        fresh = HpkeKeypair.generate(77, *X25519)
        (report,) = make_reports(replace(leader.pair, leader_key=fresh), [1])
        await leader.context.run(keys.insert_keypair, fresh, leader.pair.sealer, "active", NOW)
        mock_clock.jump(10)  # the table is read at most once a second
        result = await leader.context.uploads.submit(leader.task, report)
        assert result.upload_errors == b""
        unknown = HpkeKeypair.generate(78, *X25519)
        (report,) = make_reports(replace(leader.pair, leader_key=unknown), [1])
        result = await leader.context.uploads.submit(leader.task, report)
        assert [code for _, code in parse_upload_errors(result.upload_errors)] == [
            ReportError.OUTDATED_CONFIG
        ]


async def test_e4_below_the_free_space_mark_uploads_are_refused(tmp_path: Path) -> None:
    """E4: they get 503 with Retry-After, so that commits and garbage collection have room."""
    queue = UploadQueue(10, 10, 1000, Disk(tmp_path / "x", 1 << 60))
    with pytest.raises(Abort) as refused:
        await queue.submit(task_pair().leader, b"")
    assert refused.value.status == 503
    assert "Retry-After" in refused.value.headers


async def test_a_full_queue_is_refused_and_a_closed_queue_finishes_what_it_has(
    tmp_path: Path,
) -> None:
    """I8: the queue is bounded; once closed, it stores what it has and accepts no more."""
    limits = Leader(upload_queue=2, min_job_size=1)
    async with open_leader(tmp_path, task_pair(), silent, config=limits) as leader:
        queue = UploadQueue(2, 10, 10**6, Disk(tmp_path / "x", 0))
        reports = make_reports(leader.pair, [1] * 3)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(queue.submit, leader.task, reports[0])
            nursery.start_soon(queue.submit, leader.task, reports[1])
            await trio.testing.wait_all_tasks_blocked()
            with pytest.raises(Abort) as refused:
                await queue.submit(leader.task, reports[2])
            assert refused.value.status == 503
            queue.close()
            await uploads.run(replace(leader.context, uploads=queue))
        with pytest.raises(Abort):
            await queue.submit(leader.task, reports[2])
        assert await leader.rows("SELECT sum(n) FROM report_chunks") == [(2,)]


async def test_a_database_that_fails_is_each_requests_503(tmp_path: Path) -> None:
    """I2: no answer claims what is not stored; the loop goes on with the next group."""
    async with open_leader(tmp_path, task_pair(), silent, config=QUICK) as leader:
        (report,) = make_reports(leader.pair, [1])
        await leader.context.run(
            lambda tx: tx.execute("ALTER TABLE report_chunks RENAME TO elsewhere")
        )
        with pytest.raises(Abort) as refused:
            await leader.context.uploads.submit(leader.task, report)
        assert refused.value.status == 503
        await leader.context.run(
            lambda tx: tx.execute("ALTER TABLE elsewhere RENAME TO report_chunks")
        )
        result = await leader.context.uploads.submit(leader.task, report)
        assert result.upload_errors == b""


async def test_a_draining_task_drops_uploads_and_finishes_what_it_has(tmp_path: Path) -> None:
    """New reports are ``report_dropped``; those accepted before are aggregated as usual."""
    async with open_leader(tmp_path, task_pair(), honest, config=QUICK) as leader:
        await leader.upload(3)
        await leader.create()
        await leader.context.run(set_task_state, leader.task.task_id, TaskState.DRAINING)
        await leader.context.tasks.reload()
        (draining,) = leader.context.tasks.all()
        reports = make_reports(leader.pair, [1] * 2)
        result = await leader.context.uploads.submit(draining, b"".join(reports))
        codes = [code for _, code in parse_upload_errors(result.upload_errors)]
        assert codes == [ReportError.REPORT_DROPPED] * 2
        await leader.step()
        assert await leader.aggregated() == 3
        counters = await leader.counters()
        assert (counters["upload_accepted"], counters["upload_report_dropped"]) == (3, 2)


@pytest.mark.parametrize("state", ["draining", "deleted", "disabled"])
async def test_an_upload_that_was_let_in_before_its_task_was_stopped(
    tmp_path: Path, state: str
) -> None:
    """Once `task drain` or `task delete` has returned, no report is accepted any more: the
    transaction checks. A disabled task keeps the uploads that were admitted before.
    """
    async with open_leader(tmp_path, task_pair(), silent, config=QUICK) as leader:

        def stop(tx: Tx) -> None:
            tx.execute("UPDATE tasks SET state = :state", state=state)

        await leader.context.run(stop)
        (report,) = make_reports(leader.pair, [1])
        result = await leader.context.uploads.submit(leader.task, report)
        codes = [code for _, code in parse_upload_errors(result.upload_errors)]
        assert codes == ([] if state == "disabled" else [ReportError.REPORT_DROPPED])
