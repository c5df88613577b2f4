"""What expires on a Helper: jobs with their responses and ids, batches, aggregate shares.

Rules A1, A6, A7, C4, D2, D3, D6. Reports expire two hours, two time precisions, after theirs was
over: three hours after ``NOW`` those of ``TIME`` have.
"""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from dapd import config
from dapd.commits.aggregate_share import ShareRequest, serve_aggregate_share
from dapd.commits.helper_jobs import VerifyAgainError, commit_job, delete_aggregation_job
from dapd.datastore import Tx, batches, leases, share_jobs
from dapd.datastore.helper_jobs import JobKey, StoredJob
from dapd.datastore.share_jobs import StoredShare
from dapd.driver import helper_job
from dapd.errors import Abort
from dapd.gc.loop import GarbageCollector, raise_marks
from dapd.messages.collection import AggregateShareReq, BatchSelector, CollectionJobReq, Query
from dapd.messages.common import BatchMode, Interval
from dapd.protocol.batches import time_bucket
from dapd.protocol.task import Task, TaskSettings
from dapd.reports import ReportError
from dapd.runtime.context import Context
from tests.clock import PRECISION, TIME
from tests.contexts import clock_of, make_config, open_context
from tests.gc.row_counts import rebuilt_replay_index, row_counts
from tests.task_pair import TaskPair, leader_job, make_reports, report_ids, task_pair

QUICK_EXPIRY = TaskSettings(report_expiry_age=2 * PRECISION)
DROPPED = ReportError.REPORT_DROPPED
REPLAYED = ReportError.REPORT_REPLAYED


@dataclass
class Side:
    """A Helper and its task."""

    context: Context
    pair: TaskPair
    task: Task

    def later(self, hours: float) -> None:
        clock_of(self.context).advance(hours * 3600)

    async def collect(self) -> dict[str, int]:
        """Run one round. Return how many rows it deleted."""
        gone = await GarbageCollector(self.context).collect()
        return {name: n for counts in gone.values() for name, n in counts.items() if n}

    def live(self) -> Task:
        return self.context.tasks.by_pk(self.task.task_pk)

    async def aggregate(
        self, count: int, time: int = TIME, batch_id: bytes | None = None
    ) -> tuple[StoredJob, bytes]:
        """Run a job over new reports of this time. Return it and the reports' ids."""
        ids = report_ids(count)
        reports = make_reports(self.pair, [1] * count, ids=ids, times=[time] * count)
        job = leader_job(self.pair, reports, batch_id=batch_id)
        return await helper_job.create(self.context, self.live(), job.body), ids

    async def find(self, job: StoredJob) -> StoredJob | None:
        try:
            return await helper_job.find(self.context, self.live(), job.id)
        except Abort:
            return None

    def rows(self) -> dict[str, int]:
        return row_counts(self.context.datastore)

    def index(self, ids: bytes) -> tuple[int, bytes]:
        """Return (how many ids, which of these) the replay index has; a restart gives the same
        (D2).
        """
        store = self.context.datastore
        live = len(store.replay), store.replay.peek(self.task.task_pk, ids)
        assert rebuilt_replay_index(store.path, self.task.task_pk, ids) == live
        return live

    async def counters(self) -> dict[str, int]:
        def look(tx: Tx) -> dict[str, int]:
            return dict(tx.all("SELECT name, value FROM task_counters"))

        return await self.context.read(look)

    async def share(self, batch: Interval | bytes) -> StoredShare:
        """Return the answer to an ``AggregateShareReq`` for all that the batch has here."""
        lo, hi = (
            (batch, batch + b"\0")
            if isinstance(batch, bytes)
            else (time_bucket(batch.start), time_bucket(batch.end))
        )

        def total(tx: Tx) -> tuple[int, bytes]:
            n, checksum = 0, 0
            for page in batches.contributions_in_pages(tx, self.task.task_pk, lo, hi):
                n += sum(part.n for part in page)
                for part in page:
                    checksum ^= int.from_bytes(part.checksum, "big")
            return n, checksum.to_bytes(32, "big")

        n, checksum = await self.context.read(total)
        query = Query(batch if isinstance(batch, Interval) else None)
        message = AggregateShareReq(CollectionJobReq(query), BatchSelector(batch), n, checksum)
        digest = hashlib.sha256(message.encode()).digest()
        request = ShareRequest(self.live(), secrets.token_bytes(16), digest, message)
        return await self.context.run(
            serve_aggregate_share, request, self.context.sealer, self.context.instant()
        )

    async def refusal(self, batch: Interval | bytes) -> tuple[str | None, str]:
        with pytest.raises(Abort) as caught:
            await self.share(batch)
        return caught.value.type, caught.value.detail


@asynccontextmanager
async def open_side(
    directory: Path,
    *,
    batch_mode: BatchMode = BatchMode.TIME_INTERVAL,
    helper_mode: str = "sync",
) -> AsyncIterator[Side]:
    pair = task_pair(batch_mode=batch_mode, settings=QUICK_EXPIRY)
    settings = make_config(directory, helper=config.Helper(mode=helper_mode))  # type: ignore[arg-type]
    async with open_context(settings, (pair.helper, pair)) as context:
        task = await context.tasks.find(pair.helper.task_id)
        assert task is not None
        yield Side(context, pair, task)


async def test_d6_all_of_a_job_goes_and_its_ids_are_free(tmp_path: Path) -> None:
    """Request, response, identity, admitted ids and contributions go; jobs above the mark stay."""
    async with open_side(tmp_path) as side:
        _, old = await side.aggregate(3)
        side.later(2)
        job, new = await side.aggregate(2, TIME + 2)
        assert await side.collect() == {}
        side.later(1)
        assert await side.collect() == {"jobs": 1, "contributions": 1}
        assert side.rows() == {"aggregation_jobs": 1, "job_bodies": 1, "batch_shares": 1}
        assert side.index(old + new) == (2, bytes([0, 0, 0, 1, 1]))
        assert await side.find(job) == job
        side.later(2)
        assert await side.collect() == {"jobs": 1, "contributions": 1}
        assert side.rows() == {}
        assert await side.counters() == {"aggregate_finished": 5, "contribution_dropped": 5}


async def test_d6_a_deleted_jobs_tombstone_goes_with_its_newest_admitted_report(
    tmp_path: Path,
) -> None:
    """Until then its ids keep those reports from counting again (A6)."""
    async with open_side(tmp_path) as side:
        job, ids = await side.aggregate(3)
        await side.context.run(delete_aggregation_job, side.task.task_pk, job.id)
        side.later(2)
        assert await side.collect() == {}
        assert side.index(ids)[0] == 3
        side.later(1)
        assert (await side.collect())["jobs"] == 1
        assert side.rows() == {}
        assert side.index(ids)[0] == 0


async def test_d6_reads_hide_an_expired_job_before_it_is_collected(tmp_path: Path) -> None:
    """A request with the same bytes creates a new job, of which no report counts."""
    for collected in (False, True):
        directory = tmp_path / str(collected)
        directory.mkdir()
        async with open_side(directory) as side:
            reports = make_reports(side.pair, [1, 1])
            body = leader_job(side.pair, reports)
            first = await helper_job.create(side.context, side.live(), body.body)
            side.later(3)
            if collected:
                await side.collect()
            assert await side.find(first) is None
            again = await helper_job.create(side.context, side.live(), body.body)
            assert again.id != first.id
            assert again.response is not None
            outcome = DROPPED if collected else REPLAYED
            assert body.finish(again.response) == bytes([outcome]) * 2
            await side.collect()
            assert side.index(b"")[0] == 0
            assert (await side.counters())["aggregate_finished"] == 2


async def test_d6_a_received_job_expires_unless_someone_works_on_it(tmp_path: Path) -> None:
    """Its reports would all be dropped; they are counted, and a held request is answered."""
    async with open_side(tmp_path, helper_mode="async") as side:
        job, _ = await side.aggregate(3)
        leased, _ = await side.context.run(leases.lease_due, side.context.now(), list)
        side.later(3)
        await side.context.run(leases.renew, leased, side.context.now())
        assert await side.collect() == {}
        await side.context.run(leases.release, leased[0], side.context.now())
        waiting = side.context.finished.listen(("aggregation", job.id))
        assert side.context.rates.ahead > 0
        assert await side.collect() == {"jobs": 1}
        assert waiting.is_set()
        assert side.context.rates.ahead == 0
        assert side.rows() == {}
        assert await side.counters() == {"aggregate_report_dropped": 3}


async def test_d6_a_job_verified_before_the_mark_rose_is_verified_again(tmp_path: Path) -> None:
    """Ids below the mark may be forgotten already, so they must not be admitted again."""
    async with open_side(tmp_path) as side:
        task = side.live()
        job = leader_job(side.pair, make_reports(side.pair, [1, 1]))
        verified = side.pair.verify(
            job.start.verify_inits, rules=side.context.rules(task), job_id=key(task).id
        )
        first = await helper_job.create(side.context, task, job.body)
        side.later(3)
        await side.collect()
        assert side.index(b"")[0] == 0
        with pytest.raises(VerifyAgainError):
            await side.context.run(
                commit_job, key(task), verified, side.context.now(), stored=False
            )
        assert side.rows() == {}
        assert side.index(b"")[0] == 0
        again = await helper_job.create(side.context, side.live(), job.body)
        assert again.id != first.id
        assert (await side.counters())["aggregate_report_dropped"] == 2


async def test_d6_a_job_of_old_and_new_reports_keeps_its_answer_until_all_have_expired(
    tmp_path: Path,
) -> None:
    """The Leader may send the same bytes until its job's newest report expires. They never become a
    new job, even if the only report that was admitted has expired before (A1, I3).
    """
    async with open_side(tmp_path) as side:
        side.later(2)
        reports = make_reports(side.pair, [1, 1], times=[TIME, TIME + 2], tamper_with=[1])
        job = leader_job(side.pair, reports)
        first = await helper_job.create(side.context, side.live(), job.body)
        assert first.response is not None
        assert job.finish(first.response) == bytes([0, ReportError.VDAF_VERIFY_ERROR])
        side.later(2)
        await side.collect()
        assert side.live().expired_before_at(side.context.instant()) > TIME
        assert await helper_job.create(side.context, side.live(), job.body) == first
        side.later(2)
        await side.collect()
        assert side.rows() == {}
        assert side.index(b"")[0] == 0


async def test_d6_a_rejected_reports_time_keeps_no_job_for_longer(tmp_path: Path) -> None:
    """A time is any 64-bit number, which must neither overflow nor keep the job for ever."""
    async with open_side(tmp_path) as side:
        reports = make_reports(side.pair, [1, 1], times=[TIME, 2**63])
        job = leader_job(side.pair, reports)
        first = await helper_job.create(side.context, side.live(), job.body)
        assert first.response is not None
        assert job.finish(first.response) == bytes([0, ReportError.REPORT_TOO_EARLY])
        side.later(4)
        await side.collect()
        assert side.rows() == {}


def key(task: Task) -> JobKey:
    return JobKey(
        task_pk=task.task_pk,
        id=bytes(16),
        request_hash=bytes(32),
        n=2,
        bucket=b"",
        lease_token=bytes(16),
        newest=TIME,
    )


async def test_a7_a_job_forgets_its_answer_once_all_its_buckets_are_collected(
    tmp_path: Path,
) -> None:
    """Response and identity go, the ids stay; a job of two buckets waits for both."""
    async with open_side(tmp_path) as side:
        side.later(1)
        one, ids = await side.aggregate(3)
        reports = make_reports(side.pair, [1, 1], times=[TIME, TIME + 1])
        both = await helper_job.create(
            side.context, side.live(), leader_job(side.pair, reports).body
        )
        nothing = await helper_job.create(
            side.context,
            side.live(),
            leader_job(side.pair, make_reports(side.pair, [1], tamper_with=[0])).body,
        )
        assert await side.collect() == {}
        await side.share(Interval(TIME, 1))
        assert await side.collect() == {"answers": 1}
        assert await side.find(one) is None
        assert await side.find(both) == both
        assert await side.find(nothing) == nothing
        assert side.index(ids)[1] == bytes([1] * 3)
        await side.share(Interval(TIME + 1, 1))
        assert await side.collect() == {"answers": 1}
        assert await side.find(both) is None
        assert await side.find(nothing) == nothing


async def test_a7_a_round_goes_on_where_the_last_one_stopped(tmp_path: Path) -> None:
    """A round looks at a bounded part of the kept answers, however many there are."""
    async with open_side(tmp_path) as side:
        collector = GarbageCollector(side.context, answers=2)
        for _ in range(5):
            await side.aggregate(1)
        await side.share(Interval(TIME, 1))
        for left in (3, 1, 0):
            await collector.collect()
            assert side.rows().get("job_bodies", 0) == left


async def test_c1_a_collected_interval_is_kept_until_its_end_expires(tmp_path: Path) -> None:
    """It refuses a second collection until then; afterwards the mark does."""
    async with open_side(tmp_path) as side:
        side.later(1)
        await side.aggregate(1)
        await side.aggregate(1, TIME + 1)
        await side.share(Interval(TIME, 2))
        side.later(2)
        await side.collect()
        assert side.rows()["collected"] == 1
        assert (await side.refusal(Interval(TIME + 1, 1)))[0] == "batchOverlap"
        assert await side.refusal(Interval(TIME, 2)) == ("batchInvalid", "expired")
        side.later(1)
        await side.collect()
        assert side.rows().get("collected", 0) == 0
        assert await side.refusal(Interval(TIME + 1, 1)) == ("batchInvalid", "expired")


async def test_d6_an_aggregate_share_goes_by_when_it_was_made(tmp_path: Path) -> None:
    """Its identity is hidden with it, so an identical request is checked as a new one."""
    async with open_side(tmp_path) as side:
        await side.aggregate(3)
        made = await side.share(Interval(TIME, 1))
        task_pk = side.task.task_pk

        async def found() -> StoredShare | None:
            expired_ms = side.live().mark_at(side.context.instant()).ms
            return await side.context.read(share_jobs.by_id, task_pk, made.id, expired_ms)

        side.later(2)
        await side.collect()
        assert await side.share(Interval(TIME, 1)) == made
        side.later(1)
        assert await found() is None
        assert await side.refusal(Interval(TIME, 1)) == ("batchInvalid", "expired")
        await side.collect()
        assert side.rows() == {}


async def test_c6_a_leader_selected_batch_goes_whole_and_is_expired_before_and_after(
    tmp_path: Path,
) -> None:
    """It goes by its newest report; a request for it is refused alike before it is deleted and
    after.
    """
    async with open_side(tmp_path, batch_mode=BatchMode.LEADER_SELECTED) as side:
        batch, other, third = (secrets.token_bytes(32) for _ in range(3))
        side.later(2)
        await side.aggregate(3, TIME, batch)
        await side.aggregate(3, TIME + 2, batch)
        await side.aggregate(2, TIME, other)
        await side.aggregate(2, TIME, third)
        await side.share(other)
        side.later(1)
        assert await side.refusal(third) == ("batchInvalid", "expired")
        gone = await side.collect()
        assert gone["contributions"] == 2
        assert side.rows()["batch_shares"] == 2
        assert side.rows()["collected"] == 2, "late jobs find them closed"
        assert await side.refusal(third) == ("batchInvalid", "expired")
        assert (await side.share(batch)).response
        side.later(5)
        await side.collect()
        assert side.rows() == {}
        expected = {"aggregate_finished": 10, "contribution_dropped": 2}
        assert await side.counters() == expected, "of the third alone, which nobody collected"


async def test_c6_a_job_that_comes_late_does_not_open_its_expired_batch_again(
    tmp_path: Path,
) -> None:
    """The Leader still counts the batch's older half, which is gone here: both sides must count the
    late half as rejected, or they never agree again.
    """
    async with open_side(tmp_path, batch_mode=BatchMode.LEADER_SELECTED) as side:
        batch = secrets.token_bytes(32)
        await side.aggregate(2, TIME, batch)
        side.later(3)
        assert (await side.collect())["contributions"] == 1
        reports = make_reports(side.pair, [1, 1], times=[TIME + 2] * 2)
        late = leader_job(side.pair, reports, batch_id=batch)
        answered = await helper_job.create(side.context, side.live(), late.body)
        assert answered.response is not None
        assert late.finish(answered.response) == bytes([ReportError.BATCH_COLLECTED] * 2)
        assert side.rows().get("batch_shares", 0) == 0
        assert await side.counters() == {
            "aggregate_finished": 2,
            "aggregate_batch_collected": 2,
            "contribution_dropped": 2,
        }
        side.later(2)
        await side.collect()
        assert side.rows() == {}, "an age later no job of this batch can come"


async def test_c6_a_batch_stays_while_a_job_may_add_to_it(tmp_path: Path) -> None:
    """The Leader counts that job's reports with those that are aggregated."""
    async with open_side(
        tmp_path, batch_mode=BatchMode.LEADER_SELECTED, helper_mode="async"
    ) as side:
        batch = secrets.token_bytes(32)

        def add(tx: Tx) -> None:
            tx.execute(
                """INSERT INTO batch_shares
                (task_pk, bucket, job_id, n, checksum, time_min, time_max, share)
                VALUES (1, :batch, x'00', 1, x'00', :time, :time, x'00')""",
                batch=batch,
                time=TIME,
            )

        await side.context.run(add)
        side.later(2)
        job, _ = await side.aggregate(3, TIME + 2, batch)
        side.later(1)
        assert await side.collect() == {}
        await side.context.run(delete_aggregation_job, side.task.task_pk, job.id)
        assert await side.collect() == {"contributions": 1}


async def test_d6_a_mark_that_rose_meanwhile_refuses_what_began_before(tmp_path: Path) -> None:
    """An AggregateShareReq admitted under the old mark finds no half-deleted batch."""
    async with open_side(tmp_path) as side:
        await side.aggregate(3)
        await side.context.run(raise_marks, {side.task.task_pk: TIME + 1})
        assert side.live().expired_before == 0
        assert await side.refusal(Interval(TIME, 1)) == ("batchInvalid", "expired")
