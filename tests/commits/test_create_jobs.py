"""The transaction that creates aggregation jobs, on a real database."""

from __future__ import annotations

import secrets
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from dapd.commits import create_jobs
from dapd.commits.create_jobs import Created
from dapd.commits.leader_jobs import Result, finish_job, give_up_job
from dapd.datastore import (
    Datastore,
    Tx,
    batches,
    chunks,
    counters,
    leader_jobs,
    leases,
    outstanding,
    tasks,
)
from dapd.datastore.batches import Contribution
from dapd.datastore.chunks import Place
from dapd.datastore.leases import Due
from dapd.datastore.sqlite import Row
from dapd.messages.common import BatchMode
from dapd.protocol.packing import Limits
from dapd.protocol.states import LeaderJobState, RangeState
from dapd.protocol.task import Instant, Task, TaskSettings
from dapd.reports import ReportError
from tests.clock import NOW, PRECISION, TIME
from tests.contexts import add_task, open_store
from tests.effort import counting
from tests.task_pair import TaskPair, make_reports, task_pair

_Q_ASK = """
INSERT INTO collection_jobs (id, task_pk, state, lo, hi, cut, run_at, request, created_at)
VALUES (:id, :task_pk, 'waiting', :lo, :hi, :cut, 0, x'', 0)"""
LEEWAY = 2 * PRECISION * 1000
LIMITS = Limits(min_size=10, max_size=20, max_wait=1000)


def bucket(time: int) -> bytes:
    return time.to_bytes(8, "big")


@dataclass
class Leader:
    datastore: Datastore
    task: Task
    pair: TaskPair
    seq: int = 0

    def accept(self, *sizes: int, time: int = TIME) -> None:
        """Store one chunk per size, in this order of acceptance."""
        for size in sizes:
            self.seq += 1
            (chunk,) = self.pair.chunks(make_reports(self.pair, [1] * size, times=[time] * size))
            place = Place(
                self.task.task_pk, self.seq, bucket(time) if self.task.by_time else b"", NOW
            )
            self.datastore.run_sync(chunks.insert, place, chunk)

    def create(self, now: int = NOW) -> Created:
        return self.datastore.run_sync(
            create_jobs.create, self.task, LIMITS, Instant(now, now, LEEWAY), secrets.token_bytes
        )

    def has_work(self, now: int = NOW, limits: Limits = LIMITS) -> bool:
        """Whether the creator would occupy the writer for the task."""

        def look(tx: Tx) -> bool:
            found, _ = create_jobs.due_tasks(tx, now, limits, {self.task.task_pk: self.task}.get)
            return bool(create_jobs.tasks_with_work(tx, found, limits, Instant(now, now, LEEWAY)))

        return self.datastore.read_sync(look)

    def finish(self, n: int, accepted: int) -> None:
        """The Helper answers the oldest job of ``n`` reports, and accepts the first ones."""
        [(job_pk, batch_id)] = self.rows(
            f"SELECT job_pk, bucket FROM aggregation_jobs WHERE state = 'assigned' AND n = {n}"  # noqa: S608
            " ORDER BY job_pk LIMIT 1"
        )

        def finish(tx: Tx) -> None:
            def only(due: Sequence[Due]) -> list[Due]:
                return [each for each in due if each.pk == job_pk]

            [lease], _ = leases.lease_due(tx, NOW, only)
            job = leader_jobs.load(tx, lease)
            outcomes = bytes(accepted) + bytes([ReportError.VDAF_VERIFY_ERROR]) * (n - accepted)
            finish_job(tx, lease, job, Result(outcomes, [], True, lambda _: NOW), NOW)
            part = Contribution(batch_id, job.id, accepted, bytes(32), TIME, TIME, b"sealed")
            batches.add_contribution(tx, self.task.task_pk, part)

        self.datastore.run_sync(finish)

    def jobs(self) -> list[int]:
        return [n for (n,) in self.rows("SELECT n FROM aggregation_jobs ORDER BY job_pk")]

    def rows(self, sql: str) -> list[Row]:
        def look(tx: Tx) -> list[Row]:
            return tx.all(sql)

        return self.datastore.read_sync(look)

    def contribute(self, batch_id: bytes, n: int, time: int) -> None:
        """A job of the batch is committed."""
        part = Contribution(batch_id, secrets.token_bytes(16), n, bytes(32), time, time, b"sealed")
        self.datastore.run_sync(batches.add_contribution, self.task.task_pk, part)
        self.datastore.run_sync(
            lambda tx: tx.execute("UPDATE aggregation_jobs SET state = 'finished'")
        )

    def collect(self, lo: bytes, hi: bytes, cut: int | None = None) -> None:
        """Insert a collection that waits for [lo, hi)."""
        self.datastore.run_sync(
            lambda tx: tx.execute(
                _Q_ASK, task_pk=self.task.task_pk, id=secrets.token_bytes(16), lo=lo, hi=hi, cut=cut
            )
        )

    def close(self, time: int, state: RangeState) -> None:
        def close(tx: Tx) -> None:
            batches.close(
                tx, self.task.task_pk, bucket(time), bucket(time + 1), state=state, collection_pk=1
            )

        self.datastore.run_sync(close)

    def counters(self) -> dict[str, int]:
        return self.datastore.read_sync(counters.of_task, self.task.task_pk)


def open_leader(path: Path, pair: TaskPair) -> Iterator[Leader]:
    opened = open_store(path / "leader.sqlite")
    yield Leader(opened.datastore, add_task(opened.datastore, pair.leader, pair), pair)
    opened.close()


@pytest.fixture
def leader(tmp_path: Path) -> Iterator[Leader]:
    yield from open_leader(tmp_path, task_pair(settings=TaskSettings(report_expiry_age=86_400)))


@pytest.fixture
def selecting(tmp_path: Path) -> Iterator[Leader]:
    yield from open_leader(
        tmp_path, task_pair(batch_mode=BatchMode.LEADER_SELECTED, min_batch_size=25)
    )


def test_few_reports_wait_for_others_until_the_oldest_has_waited_enough(leader: Leader) -> None:
    """Jobs have at least the minimum size, unless the oldest report has waited ``max_wait``."""
    leader.accept(4, 5)
    assert leader.create() == Created(0, False, NOW + 1000)
    assert leader.create(NOW + 1000).jobs == 1
    assert leader.jobs() == [9]


def test_jobs_keep_between_the_sizes_and_a_larger_chunk_goes_alone_d5(leader: Leader) -> None:
    """D5: a chunk above the maximum, stored before that was lowered, gets its own job."""
    leader.accept(8, 25, 8, 8)
    assert leader.create().jobs == 2
    assert sorted(leader.jobs()) == [16, 25]
    assert leader.rows("SELECT n FROM report_chunks WHERE state = 'waiting'") == [(8,)]


def test_c3_a_waiting_collection_flushes_its_batch_at_once(leader: Leader) -> None:
    """C3: small jobs are made for a batch that a collection asks for, not for others."""
    leader.accept(2)
    leader.collect(bucket(TIME + 1), bucket(TIME + 2))
    assert leader.create().jobs == 0
    leader.collect(bucket(TIME), bucket(TIME + 1))
    assert leader.create().jobs == 1


def test_c3_beyond_the_cut_nothing_of_that_batch_is_assigned(leader: Leader) -> None:
    """C3: chunks behind the cut wait, however many; other batches continue."""
    leader.accept(1, 2, 15)
    leader.accept(12, time=TIME + 1)
    leader.collect(bucket(TIME), bucket(TIME + 1), cut=2)
    leader.create(NOW + 5000)
    assert leader.rows("SELECT seq FROM report_chunks WHERE state = 'waiting'") == [(3,)]


def test_c2_c8_closed_batches_are_left_alone_and_collected_ones_refused(leader: Leader) -> None:
    """C2: later chunks of a closed batch wait; once it is collected, they are rejected."""
    leader.accept(12)
    leader.close(TIME, RangeState.CLOSED)
    assert leader.create(NOW + 5000).jobs == 0
    assert leader.counters() == {}
    leader.datastore.run_sync(batches.mark_collected, 1)
    assert leader.create(NOW + 5000).jobs == 0
    assert leader.counters() == {"aggregate_batch_collected": 12}
    assert leader.rows("SELECT count(*) FROM chunk_rows") == [(0,)]
    assert leader.rows("SELECT state, length(ids) FROM report_chunks") == [("decided", 12 * 16)]


def test_c8_d6_expired_chunks_are_dropped_and_counted(leader: Leader) -> None:
    """C8: reports below ``expired_before`` are refused by the creator's transaction."""
    leader.accept(3)
    leader.accept(4, time=TIME + 1)
    leader.create(NOW + 1000 * (86_400 + PRECISION))
    assert leader.counters() == {"aggregate_report_dropped": 3}
    assert leader.jobs() == [4]


def test_a_deferred_chunk_waits_for_its_time_d5(leader: Leader) -> None:
    """D5: rows that were too early have a later ``run_at``, which even a collection waits for."""
    leader.accept(3)
    leader.datastore.run_sync(lambda tx: tx.execute("UPDATE report_chunks SET run_at = 2e12"))
    leader.collect(bucket(TIME), bucket(TIME + 1))
    assert leader.create().jobs == 0


def test_c3_no_number_of_chunks_behind_a_cut_keeps_others_from_their_job(leader: Leader) -> None:
    """C3: more than one transaction looks at, all older than those of another batch."""
    leader.accept(1)
    leader.collect(bucket(TIME), bucket(TIME + 1), cut=0)
    leader.datastore.run_sync(
        lambda tx: tx.execute(
            "WITH RECURSIVE counted(k) AS (VALUES (1) UNION ALL SELECT k + 1 FROM counted"
            " WHERE k < 20000)"
            " INSERT INTO report_chunks (task_pk, seq, bucket, n, time_min, time_max, ids, state,"
            " run_at) SELECT task_pk, seq, bucket, n, time_min, time_max, ids, state, run_at"
            " FROM report_chunks, counted"
        )
    )
    leader.accept(20, time=TIME + 1)
    leader.create()
    assert leader.jobs() == [20]


def test_d5_chunks_that_are_all_too_early_get_no_job(leader: Leader) -> None:
    """A wrong clock let them in; they wait until the clock has come to their time."""
    leader.accept(20, time=TIME + 1000)
    leader.create()
    assert leader.jobs() == []
    leader.create(now=NOW + 1001 * PRECISION * 1000)
    assert leader.jobs() == [20]


def test_c6_chunks_are_cut_to_fill_batches_to_the_target(selecting: Leader) -> None:
    """C6, D5: the oldest batch below its target is filled exactly; slices keep their seq."""
    selecting.accept(30, 30)
    selecting.create()
    assert selecting.rows(
        "SELECT sum(n) FROM aggregation_jobs GROUP BY bucket ORDER BY min(job_pk)"
    ) == [(25,), (25,), (10,)]
    assert max(selecting.jobs()) <= LIMITS.max_size
    assert selecting.rows("SELECT sum(n), sum(length(ids)) FROM report_chunks GROUP BY seq") == [
        (30, 480),
        (30, 480),
    ]
    batch = (
        "SELECT job.bucket = chunk.bucket FROM aggregation_jobs AS job JOIN report_chunks AS chunk"
    )
    assert set(selecting.rows(f"{batch} USING (job_pk)")) == {(1,)}


def test_c6_the_rest_of_a_batch_goes_to_it_although_it_is_small(selecting: Leader) -> None:
    """C6: a job that fills its batch is created at once; else it would wait for ever."""
    selecting.accept(22)
    selecting.create()
    selecting.accept(3)
    assert selecting.create().jobs == 1
    assert selecting.rows("SELECT count(*) FROM outstanding_batches") == [(1,)]


def test_c6_a_batch_that_is_about_to_expire_takes_no_more_reports(selecting: Leader) -> None:
    """The Helper might have dropped it before the job comes; a batch that is fed lives on."""
    age = TaskSettings(report_expiry_age=2 * PRECISION, batch_target_size=30)
    selecting.task = replace(selecting.task, settings=age)
    selecting.accept(10)
    selecting.create()
    [(first,)] = selecting.rows("SELECT bucket FROM aggregation_jobs")
    selecting.contribute(first, 10, TIME)
    lives_until = selecting.task.ms_of(TIME + 3)
    selecting.accept(10, time=TIME + 2)
    selecting.create(now=lives_until - 11 * 60_000)
    selecting.accept(10, time=TIME + 2)
    selecting.create(now=lives_until - 9 * 60_000)
    [_, (second,), (third,)] = selecting.rows("SELECT bucket FROM aggregation_jobs ORDER BY job_pk")
    assert second == first
    assert third != first
    selecting.contribute(first, 10, TIME + 2)
    selecting.accept(1, time=TIME + 2)
    selecting.create(now=lives_until - 8 * 60_000 + LIMITS.max_wait)
    [(fed,)] = selecting.rows("SELECT bucket FROM aggregation_jobs ORDER BY job_pk DESC LIMIT 1")
    assert fed == first


def test_c6_a_waiting_query_flushes_the_task_up_to_its_cut(selecting: Leader) -> None:
    """C6, C3: the next batch asks for every waiting chunk of the task, up to its cut."""
    selecting.accept(2, 3)
    selecting.collect(b"", b"", cut=1)
    selecting.create()
    assert selecting.jobs() == [2]


def test_c6_reports_that_were_rejected_leave_room_in_a_full_batch(selecting: Leader) -> None:
    """The creator passes over a full batch until a job of it has ended."""
    selecting.accept(25)
    selecting.create()
    assert selecting.rows("SELECT room FROM outstanding_batches") == [(0,)]
    selecting.finish(20, accepted=17)
    selecting.accept(3)
    selecting.create()
    assert selecting.rows("SELECT room FROM outstanding_batches") == [(0,)]
    assert selecting.jobs() == [20, 5, 3]


def test_c6_reports_that_were_given_up_leave_room_in_a_full_batch(selecting: Leader) -> None:
    """That is so whether they expired or an operator gave them up."""
    selecting.accept(25)
    selecting.create()
    [(job_pk,)] = selecting.rows("SELECT job_pk FROM aggregation_jobs WHERE n = 5")
    selecting.datastore.run_sync(give_up_job, job_pk, LeaderJobState.LOST, "for a test", NOW)
    selecting.accept(5)
    selecting.create()
    assert selecting.rows("SELECT count(*) FROM outstanding_batches") == [(1,)]


def test_c6_a_larger_target_leaves_room_in_a_full_batch(selecting: Leader) -> None:
    """``dapd task set --batch-target-size`` is for open batches too."""
    selecting.accept(25)
    selecting.create()
    settings = TaskSettings(batch_target_size=35)
    selecting.datastore.run_sync(tasks.set_settings, selecting.task.task_pk, settings)
    selecting.task = replace(selecting.task, settings=settings)
    selecting.accept(10)
    selecting.create()
    assert selecting.rows("SELECT count(*), sum(room) FROM outstanding_batches") == [(1, 0)]


def test_c6_full_batches_cost_the_creator_nothing(selecting: Leader) -> None:
    """SQLite does as much beside 200 batches that nobody has collected as beside 10."""
    selecting.accept(1)
    efforts = []
    for number in (10, 190):

        def fill(tx: Tx, number: int = number) -> None:
            for _ in range(number):
                batch_id = secrets.token_bytes(32)
                outstanding.insert(tx, selecting.task.task_pk, batch_id)
                part = Contribution(
                    batch_id, secrets.token_bytes(16), 25, bytes(32), TIME, TIME, b"sealed"
                )
                batches.add_contribution(tx, selecting.task.task_pk, part)

        selecting.datastore.run_sync(fill)
        assert selecting.has_work(), "it hasn't looked at them yet"
        selecting.create()
        assert not selecting.has_work()
        with counting(selecting.datastore.path) as (tx, effort):
            at = Instant(NOW, NOW, LEEWAY)
            create_jobs.due_tasks(tx, NOW, LIMITS, {selecting.task.task_pk: selecting.task}.get)
            create_jobs.create(tx, selecting.task, LIMITS, at, secrets.token_bytes)
        efforts.append(effort.steps)
    assert efforts[0] == efforts[1]


def test_c6_a_collection_looks_no_further_than_the_oldest_full_batch(selecting: Leader) -> None:
    """It takes that one, however many others there are."""

    def fill(tx: Tx) -> None:
        for number in range(200):
            batch_id = number.to_bytes(32, "big")
            outstanding.insert(tx, selecting.task.task_pk, batch_id)
            part = Contribution(batch_id, bytes(16), number, bytes(32), TIME, TIME, b"sealed")
            batches.add_contribution(tx, selecting.task.task_pk, part)

    selecting.datastore.run_sync(fill)
    found = [
        selecting.datastore.read_sync(
            outstanding.open_batches, selecting.task.task_pk, 0, until=until
        )
        for until in (0, 5, 150, 1000, None)
    ]
    assert [len(each) for each in found] == [1, 6, 151, 200, 200]
    assert [each.aggregated for each in found[-1]] == list(range(200))


def test_a_task_has_work_once_its_reports_are_enough_or_have_waited_enough(leader: Leader) -> None:
    """Until then the creator leaves the writer alone."""
    leader.accept(4, 5)
    assert not leader.has_work()
    assert leader.has_work(NOW + 1000)
    leader.accept(1)
    assert leader.has_work()
    leader.create()
    assert not leader.has_work(NOW + 1000)


def test_c3_a_task_has_work_if_a_collection_wants_a_report_of_its_own(leader: Leader) -> None:
    """A collection of other batches makes none, nor do reports behind a cut."""
    leader.accept(2)
    leader.collect(bucket(TIME + 1), bucket(TIME + 2))
    assert not leader.has_work()
    leader.collect(bucket(TIME), bucket(TIME + 1), cut=0)
    assert not leader.has_work(NOW + 5000)
    leader.datastore.run_sync(lambda tx: tx.execute("UPDATE collection_jobs SET cut = 1"))
    assert leader.has_work()


def test_c2_c8_a_task_has_work_once_late_reports_must_be_refused(leader: Leader) -> None:
    """While their batch is closed, they wait without making any."""
    leader.accept(12)
    leader.close(TIME, RangeState.CLOSED)
    assert not leader.has_work(NOW + 5000)
    leader.datastore.run_sync(batches.mark_collected, 1)
    assert leader.has_work(NOW + 5000)
    leader.create(NOW + 5000)
    assert not leader.has_work(NOW + 5000)


def test_c6_a_task_has_work_if_its_reports_fill_a_batch(selecting: Leader) -> None:
    """They may be fewer than a job otherwise has, for a new batch as for the rest of one."""
    large = replace(LIMITS, min_size=1000, max_size=1000)
    selecting.accept(24)
    assert not selecting.has_work(limits=large)
    selecting.accept(1)
    assert selecting.has_work(limits=large)
    selecting.create()
    assert not selecting.has_work(limits=large)
    selecting.accept(20)
    selecting.create()
    assert selecting.rows("SELECT max(room) FROM outstanding_batches") == [(5,)]
    selecting.accept(4)
    assert not selecting.has_work(limits=large)
    selecting.accept(1)
    assert selecting.has_work(limits=large)


def test_running_it_twice_makes_no_job_twice(leader: Leader) -> None:
    """I1: a chunk is in one job, however often the creator runs."""
    leader.accept(12)
    leader.create()
    assert leader.create() == Created(0, False, None)
    assert leader.jobs() == [12]
