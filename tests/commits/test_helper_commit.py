"""A Helper's jobs count exactly once, despite repeats, races and lost connections."""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Iterator
from pathlib import Path

import pytest

from dapd.commits.helper_jobs import VerifyAgainError, commit_job, delete_aggregation_job, store_job
from dapd.crypto import Keyring, batch_share_aad
from dapd.datastore import Datastore, batches, counters, helper_jobs
from dapd.datastore.helper_jobs import JobKey, StoredJob
from dapd.errors import Abort
from dapd.messages.common import BatchMode
from dapd.protocol.batches import batch_id_range, time_bucket
from dapd.protocol.helper import judge_init
from dapd.protocol.states import RangeState
from dapd.protocol.task import Task
from dapd.reports import HelperVerified, ReportError
from tests.clock import NOW, TIME
from tests.contexts import add_task, contributions, open_store
from tests.task_pair import (
    ANY_TIME,
    LeaderJob,
    TaskPair,
    leader_job,
    make_reports,
    report_ids,
    task_pair,
)

LO, HI = bytes(8), b"\xff" * 8
FINE, REPLAYED, COLLECTED = 0, ReportError.REPORT_REPLAYED, ReportError.BATCH_COLLECTED


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Datastore]:
    opened = open_store(tmp_path / "dapd.sqlite")
    yield opened.datastore
    opened.close()


@pytest.fixture
def pair() -> TaskPair:
    return task_pair()


@pytest.fixture
def task(store: Datastore, pair: TaskPair) -> Task:
    return add_task(store, pair.helper, pair)


def key_of(task: Task, job: LeaderJob) -> JobKey:
    request = judge_init(task, job.body)
    return JobKey(
        task.task_pk,
        secrets.token_bytes(16),
        hashlib.sha256(job.body).digest(),
        request.rows.count,
        request.batch_id or b"",
        secrets.token_bytes(16),
        TIME,
    )


def verify(
    pair: TaskPair, task: Task, job: LeaderJob, key: JobKey, known: bytes | None = None
) -> HelperVerified:
    request = judge_init(task, job.body)
    return request.rows.verify(
        task.parameters,
        ANY_TIME,
        Keyring([pair.helper_key]),
        pair.sealer,
        key.id,
        request.batch_id,
        bytes(key.n) if known is None else known,
    )


def commit(
    store: Datastore, pair: TaskPair, task: Task, job: LeaderJob, key: JobKey | None = None
) -> StoredJob:
    """Verify a job, then commit it without storing it first, as the sync mode does."""
    key = key or key_of(task, job)
    return store.run_sync(commit_job, key, verify(pair, task, job, key), NOW, stored=False)


def outcomes(job: LeaderJob, stored: StoredJob) -> bytes:
    assert stored.response is not None
    return job.finish(stored.response)


def aggregated(store: Datastore, task: Task) -> int:
    return store.read_sync(batches.aggregated, task.task_pk, LO, HI)


def plain_share(store: Datastore, pair: TaskPair, task: Task, job_id: bytes) -> bytes:
    (part,) = (
        part
        for part in store.read_sync(contributions, task.task_pk, LO, HI)
        if part.job_id == job_id
    )
    return pair.sealer.open(batch_share_aad(task.task_id, job_id, part.bucket), part.share)


def test_i6_every_report_is_answered_in_order(store: Datastore, pair: TaskPair, task: Task) -> None:
    """A report with a bad proof is rejected alone; its neighbours count."""
    job = leader_job(pair, make_reports(pair, [1, 1, 0, 1], tamper_with=[2]))
    answered = outcomes(job, commit(store, pair, task, job))
    assert answered == bytes([0, 0, ReportError.VDAF_VERIFY_ERROR, 0])
    assert aggregated(store, task) == 3
    assert store.read_sync(counters.of_task, task.task_pk) == {
        "aggregate_finished": 3,
        "aggregate_vdaf_verify_error": 1,
    }


def test_d1_a_repeated_commit_gives_the_stored_outcome(
    store: Datastore, pair: TaskPair, task: Task
) -> None:
    """Running the commit again, as after a lost COMMIT, counts and admits nothing twice."""
    job = leader_job(pair, make_reports(pair, [1, 0, 1]))
    key = key_of(task, job)
    first = commit(store, pair, task, job, key)
    assert commit(store, pair, task, job, key) == first
    assert outcomes(job, first) == bytes(3)
    assert aggregated(store, task) == 3


def test_a1_identical_requests_at_once_are_one_job(
    store: Datastore, pair: TaskPair, task: Task
) -> None:
    """The second of two racing commits, with another id, returns the first one's job."""
    job = leader_job(pair, make_reports(pair, [1, 0]))
    first, second = commit(store, pair, task, job), commit(store, pair, task, job)
    assert second == first
    assert aggregated(store, task) == 2


def test_a1_storing_a_finished_job_returns_it(store: Datastore, pair: TaskPair, task: Task) -> None:
    job = leader_job(pair, make_reports(pair, [1]))
    finished = commit(store, pair, task, job)
    assert store.run_sync(store_job, key_of(task, job), job.body, NOW) == finished


def test_a2_the_running_commit_claims_the_row_that_was_stored_for_it(
    store: Datastore, pair: TaskPair, task: Task
) -> None:
    """If ``sync_wait`` ends first, the row has the same id and the running commit's lease."""
    job = leader_job(pair, make_reports(pair, [1, 1]))
    key = key_of(task, job)
    verified = verify(pair, task, job, key)
    late = store.run_sync(store_job, key, job.body, NOW, lease_until=NOW + 1)
    assert (late.id, late.state) == (key.id, "received")
    finished = store.run_sync(commit_job, key, verified, NOW, stored=False)
    assert (finished.id, finished.state) == (key.id, "finished")
    assert aggregated(store, task) == 2


def test_d1_a_commit_without_its_lease_changes_nothing(
    store: Datastore, pair: TaskPair, task: Task
) -> None:
    """If another step has the job, this verification is discarded and the index unchanged."""
    job = leader_job(pair, make_reports(pair, [1, 1]))
    key = key_of(task, job)
    store.run_sync(store_job, key, job.body, NOW)
    seen = store.run_sync(commit_job, key, verify(pair, task, job, key), NOW, stored=True)
    assert seen.state == "received"
    assert aggregated(store, task) == 0
    assert len(store.replay) == 0


def test_i1_a_report_in_two_jobs_counts_once(store: Datastore, pair: TaskPair, task: Task) -> None:
    """The second job's row is ``report_replayed``, and its share is subtracted exactly."""
    reports = make_reports(pair, [1, 1, 0, 1])
    first, second = leader_job(pair, reports[:2]), leader_job(pair, reports[1:])
    assert outcomes(first, commit(store, pair, task, first)) == bytes(2)
    replaying = commit(store, pair, task, second)
    assert outcomes(second, replaying) == bytes([REPLAYED, FINE, FINE])
    assert aggregated(store, task) == 4


@pytest.mark.parametrize("peeked", [True, False])
def test_e3_rework_and_mask_give_the_same_share(
    store: Datastore, pair: TaskPair, task: Task, peeked: bool
) -> None:
    """A row left out before verification or subtracted afterwards gives the same bytes."""
    ids = report_ids(3)
    reports = make_reports(pair, [1, 1, 0], ids=ids)
    commit(store, pair, task, leader_job(pair, reports[:1]))
    job, only = leader_job(pair, reports), leader_job(pair, reports[1:])
    key, key_of_only = key_of(task, job), key_of(task, only)
    known = bytes([REPLAYED, 0, 0]) if peeked else bytes(3)
    verified = verify(pair, task, job, key, known)
    store.run_sync(commit_job, key, verified, NOW, stored=False)
    (total,) = verify(pair, task, only, key_of_only).finish([], bytes(2)).buckets
    aad = batch_share_aad(task.task_id, key_of_only.id, total.bucket)
    assert plain_share(store, pair, task, key.id) == pair.sealer.open(aad, total.share)


def test_e3_a_row_that_was_left_out_wrongly_is_verified_again(
    store: Datastore, pair: TaskPair, task: Task
) -> None:
    """If a row was wrongly left out as replayed, everything is rolled back, the index too (D3)."""
    job = leader_job(pair, make_reports(pair, [1, 1]))
    key = key_of(task, job)
    mistaken = verify(pair, task, job, key, bytes([REPLAYED, 0]))
    with pytest.raises(VerifyAgainError) as caught:
        store.run_sync(commit_job, key, mistaken, NOW, stored=False)
    assert len(store.replay) == 0
    assert store.read_sync(helper_jobs.by_id, task.task_pk, key.id, 0) is None
    again = verify(pair, task, job, key, caught.value.known)
    finished = store.run_sync(commit_job, key, again, NOW, stored=False)
    assert outcomes(job, finished) == bytes(2)


def test_i7_a_collected_bucket_takes_no_more(store: Datastore, pair: TaskPair, task: Task) -> None:
    """Only rows in the collected interval are rejected, and they are no replays later."""
    job = leader_job(pair, make_reports(pair, [1, 1, 1], times=[TIME - 1, TIME, TIME]))
    store.run_sync(
        batches.close,
        task.task_pk,
        time_bucket(TIME - 5),
        time_bucket(TIME),
        state=RangeState.COLLECTED,
        collection_pk=None,
    )
    assert outcomes(job, commit(store, pair, task, job)) == bytes([COLLECTED, FINE, FINE])
    assert len(store.replay) == 2


def test_i7_a_collected_batch_id_takes_no_more(store: Datastore) -> None:
    pair = task_pair(batch_mode=BatchMode.LEADER_SELECTED)
    task = add_task(store, pair.helper, pair)
    batch_id = secrets.token_bytes(32)
    job = leader_job(pair, make_reports(pair, [1, 0]), batch_id=batch_id)
    batch = batch_id_range(batch_id)
    store.run_sync(
        batches.close, task.task_pk, *batch, state=RangeState.COLLECTED, collection_pk=None
    )
    assert outcomes(job, commit(store, pair, task, job)) == bytes([COLLECTED] * 2)
    assert store.read_sync(contributions, task.task_pk, *batch) == []


def test_a6_a_job_deleted_before_its_commit_admits_nothing(
    store: Datastore, pair: TaskPair, task: Task
) -> None:
    """The running commit fails, and its reports count in another job."""
    reports = make_reports(pair, [1, 1])
    job = leader_job(pair, reports)
    key = key_of(task, job)
    store.run_sync(store_job, key, job.body, NOW, lease_until=NOW + 1)
    verified = verify(pair, task, job, key)
    assert store.run_sync(delete_aggregation_job, task.task_pk, key.id)
    for stored in (True, False):
        with pytest.raises(Abort, match="deleted") as caught:
            store.run_sync(commit_job, key, verified, NOW, stored=stored)
        assert caught.value.type == "unrecognizedAggregationJob"
    assert (len(store.replay), aggregated(store, task)) == (0, 0)
    again = leader_job(pair, reports)
    assert outcomes(again, commit(store, pair, task, again)) == bytes(2)


def test_a6_a_deleted_job_keeps_its_replay_record_and_its_share(
    store: Datastore, pair: TaskPair, task: Task
) -> None:
    """The same request makes a new job, whose reports are all replays."""
    job = leader_job(pair, make_reports(pair, [1, 1]))
    first = commit(store, pair, task, job)
    assert store.run_sync(delete_aggregation_job, task.task_pk, first.id)
    assert not store.run_sync(delete_aggregation_job, task.task_pk, first.id)
    second = commit(store, pair, task, job)
    assert second.id != first.id
    assert outcomes(job, second) == bytes([REPLAYED] * 2)
    assert aggregated(store, task) == 2


def test_d2_a_restart_knows_what_was_admitted_and_nothing_else(
    tmp_path: Path, pair: TaskPair
) -> None:
    """Jobs deleted after they finished count; unfinished and rejected reports don't."""
    before = open_store(tmp_path / "restarted.sqlite")
    store = before.datastore
    task = add_task(store, pair.helper, pair)
    done, gone, pending, aborted = (
        leader_job(pair, make_reports(pair, [1, 1, 1], tamper_with=[1])) for _ in range(4)
    )
    commit(store, pair, task, done)
    store.run_sync(delete_aggregation_job, task.task_pk, commit(store, pair, task, gone).id)
    key = key_of(task, pending)
    store.run_sync(store_job, key, pending.body, NOW, lease_until=NOW + 1)
    deleted = store.run_sync(store_job, key_of(task, aborted), aborted.body, NOW)
    store.run_sync(delete_aggregation_job, task.task_pk, deleted.id)
    before.close()

    again = open_store(store.path)
    try:
        replay = again.datastore.replay
        ids = [judge_init(task, job.body).rows.ids for job in (done, gone, pending, aborted)]
        masks = [replay.peek(task.task_pk, column) for column in ids]
        assert masks == [bytes([1, 0, 1])] * 2 + [bytes(3)] * 2
        finished = commit(again.datastore, pair, task, pending, key)
        assert outcomes(pending, finished)[0] == FINE
    finally:
        again.close()
