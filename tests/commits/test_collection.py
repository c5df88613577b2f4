"""The transactions of a collection job, on a real database with aggregated batches."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import pytest

from dapd.commits import create_jobs
from dapd.commits.abandon import abandon
from dapd.commits.batch_total import batch_total
from dapd.commits.collections import (
    BatchChangedError,
    Failed,
    advance_collection,
    delete_collection,
    finish_collection,
    freeze_collection,
    give_up_collection,
    refuse_collection,
)
from dapd.commits.sealing_keys import Forgetting, forget_page
from dapd.datastore import Tx, collections, counters, jobs, sealed, uncollected
from dapd.datastore.collections import CollectionJob
from dapd.datastore.leases import Lease
from dapd.driver.collection import frozen_batch
from dapd.errors import Abort
from dapd.messages.collection import AggregateShareReq, CollectionJobReq, Query
from dapd.messages.common import BatchMode, Extension, Interval
from dapd.protocol.batches import batch_id_range, time_bucket
from dapd.protocol.collect import FixCut, Freeze, Move, Wait
from dapd.protocol.packing import Limits
from dapd.protocol.task import Instant, TaskSettings
from tests.clock import NOW, TIME
from tests.database_pair import (
    KEEP_MS,
    NEXT_BATCH,
    QUERY,
    DatabasePair,
    interval_query,
    open_databases,
)

LATER = NOW + 60_000


@pytest.fixture
async def pair(tmp_path: Path) -> AsyncIterator[DatabasePair]:
    async with open_databases(tmp_path) as databases:
        yield databases


@pytest.fixture
async def selected(tmp_path: Path) -> AsyncIterator[DatabasePair]:
    async with open_databases(tmp_path, mode=BatchMode.LEADER_SELECTED) as databases:
        yield databases


def move(databases: DatabasePair, job: CollectionJob) -> Move | Failed | None:
    return databases.advance(job)


def frozen(databases: DatabasePair, job: CollectionJob) -> Lease:
    return databases.freeze(job)


def finished(databases: DatabasePair, job: CollectionJob, response: bytes = b"result") -> None:
    assert databases.store.run_sync(finish_collection, frozen(databases, job), response)


def error_of(databases: DatabasePair, request: CollectionJobReq) -> str | None:
    with pytest.raises(Abort) as caught:
        databases.query(request)
    return caught.value.type


async def test_a1_an_identical_request_finds_the_job_whatever_else_would_be_wrong(
    pair: DatabasePair,
) -> None:
    """Even if the interval is collected, for which a new request would be refused."""
    job = pair.query(QUERY)
    assert pair.query(QUERY).id == job.id
    pair.aggregate([1, 0, 1])
    finished(pair, job)
    again = pair.query(QUERY)
    assert (again.id, again.response) == (job.id, b"result")


async def test_a1_a_failed_job_has_no_identity(pair: DatabasePair) -> None:
    """The same request may be tried again after a final refusal."""
    job = pair.query(QUERY)
    pair.aggregate([1, 0, 1])
    pair.store.run_sync(
        refuse_collection, frozen(pair, job), pair.leader, "batchMismatch", "they differ"
    )
    assert pair.query(QUERY).id != job.id
    assert pair.job(job).error == "batchMismatch"


async def test_a6_deleting_a_waiting_job_closes_nothing(pair: DatabasePair) -> None:
    """Before the freeze a job binds nothing, and a new one can be made."""
    job = pair.query(QUERY)
    assert pair.store.run_sync(delete_collection, pair.leader, job.id, pair.clock.instant())
    assert pair.state_of(time_bucket(TIME)) is None
    assert pair.query(QUERY).id != job.id


async def test_a6_a_deleted_job_leaves_its_batch_collected(pair: DatabasePair) -> None:
    """The result is deleted, but the interval stays closed."""
    pair.aggregate([1, 0, 1])
    job = pair.query(QUERY)
    finished(pair, job)
    assert pair.store.run_sync(delete_collection, pair.leader, job.id, pair.clock.instant())
    assert pair.job(job).response is None
    assert error_of(pair, interval_query(TIME, 2)) == "batchOverlap"
    assert error_of(pair, QUERY) == "batchOverlap"


@pytest.mark.parametrize(("sent", "state"), [(True, "collected"), (False, None)])
async def test_a6_deleting_a_frozen_job_collects_what_may_have_been_asked_for(
    pair: DatabasePair, sent: bool, state: str | None
) -> None:
    """The Helper may have closed the batch, unless nothing was ever sent."""
    pair.aggregate([1, 0, 1])
    job = pair.query(QUERY)
    lease = frozen(pair, job)
    if sent:
        assert pair.store.run_sync(collections.note_send, lease)
    assert pair.store.run_sync(delete_collection, pair.leader, job.id, pair.clock.instant())
    assert pair.state_of(time_bucket(TIME)) == state
    assert not pair.store.run_sync(collections.note_send, lease)
    assert not pair.store.run_sync(finish_collection, lease, b"too late")


async def test_a8_three_batches_in_a_row_and_a_repeat_before_delete(
    selected: DatabasePair,
) -> None:
    """The same bytes give the same batch until DELETE, then the next one."""
    batches = [selected.open_batch() for _ in range(3)]
    for batch_id in batches:
        selected.aggregate([1, 1, 1], batch_id=batch_id)
    seen = []
    for batch_id in batches:
        job = selected.query(NEXT_BATCH)
        finished(selected, job, batch_id)
        repeat = selected.query(NEXT_BATCH)
        assert (repeat.id, repeat.response) == (job.id, batch_id)
        seen.append(selected.job(job).lo)
        selected.store.run_sync(
            delete_collection, selected.leader, job.id, selected.clock.instant()
        )
    assert seen == batches
    waits = selected.query(NEXT_BATCH)
    assert isinstance(move(selected, waits), Wait)


async def test_a8_identity_ends_some_time_after_the_result_was_first_served(
    selected: DatabasePair,
) -> None:
    """The time counts from serving, not from creation, so a late Collector still finds it."""
    selected.aggregate([1, 1, 1], batch_id=selected.open_batch())
    job = selected.query(NEXT_BATCH)
    finished(selected, job)
    selected.clock.advance((10 * KEEP_MS) / 1000)
    assert selected.query(NEXT_BATCH).id == job.id
    selected.store.run_sync(collections.note_served, job.pk, selected.clock.now())
    selected.store.run_sync(collections.note_served, job.pk, selected.clock.now() + KEEP_MS)
    selected.clock.advance((KEEP_MS - 1) / 1000)
    assert selected.query(NEXT_BATCH).id == job.id
    selected.clock.advance(0.001)
    assert selected.query(NEXT_BATCH).id != job.id
    assert selected.job(job).response == b"result"


async def test_a8_a_batch_is_never_bound_to_a_second_job(selected: DatabasePair) -> None:
    """A batch stays bound after a refusal, and after its job was deleted."""
    for _ in range(2):
        selected.aggregate([1, 1, 1], batch_id=selected.open_batch())
    refused = selected.query(NEXT_BATCH)
    selected.store.run_sync(
        refuse_collection, frozen(selected, refused), selected.leader, "batchMismatch", "x"
    )
    deleted = selected.query(NEXT_BATCH)
    frozen(selected, deleted)
    selected.store.run_sync(
        delete_collection, selected.leader, deleted.id, selected.clock.instant()
    )
    assert selected.job(deleted).lo != selected.job(refused).lo
    assert isinstance(move(selected, selected.query(NEXT_BATCH)), Wait)
    left = selected.store.read_sync(uncollected.of_task, selected.leader.task_pk, 0)
    assert (left.aggregated, left.first_expiring) == (0, None), "nobody is told to collect them"


async def test_c1_an_empty_bucket_of_a_collected_interval_is_collected(pair: DatabasePair) -> None:
    """Overlap is checked by intervals, even one of 2^60 buckets."""
    pair.aggregate([1, 0, 1])
    job = pair.query(interval_query(TIME - 5, 1 << 60))
    finished(pair, job)
    assert pair.state_of(time_bucket(TIME + 1_000_000)) == "collected"
    assert error_of(pair, interval_query(TIME + (1 << 59), 1)) == "batchOverlap"
    assert error_of(pair, interval_query(0, TIME - 4)) == "batchOverlap"
    pair.query(interval_query(0, TIME - 5))


async def test_c2_freeze_stores_the_exact_request_and_closes_the_interval(
    pair: DatabasePair,
) -> None:
    """The exact request is in the database before it is sent."""
    pair.aggregate([1, 0, 1])
    pair.aggregate([1], time=TIME + 1)
    job = pair.query(interval_query(TIME, 10))
    frozen(pair, job)
    stored = pair.job(job)
    assert stored.state == "frozen"
    assert stored.share_request is not None
    request = AggregateShareReq.decode(stored.share_request)
    assert request.collection_job_req == interval_query(TIME, 10)
    assert request.batch_selector.batch == Interval(TIME, 10)
    assert request.report_count == 4
    assert (stored.time_min, stored.time_max) == (TIME, TIME + 1)
    assert pair.state_of(time_bucket(TIME + 9)) == "closed"


async def test_c2_no_freeze_while_a_job_holds_a_chunk_of_the_batch(pair: DatabasePair) -> None:
    """Otherwise the sums of both Aggregators could differ."""
    pair.aggregate([1, 0, 1])
    seq = pair.upload(1)
    job = pair.query(QUERY)
    assert move(pair, job) == FixCut(seq)
    pair.upload(2)
    assert move(pair, job) == Wait()
    pair.decide(seq)
    frozen(pair, job)


async def test_c2_a_batch_that_changed_since_its_sum_is_not_frozen(pair: DatabasePair) -> None:
    """The transaction rolls back, and the job is advanced again."""
    pair.aggregate([1, 0, 1])
    job = pair.query(QUERY)
    lease = pair.lease(job)
    made = pair.store.run_sync(advance_collection, lease, pair.leader, Instant(NOW, NOW), LATER)
    assert isinstance(made, Freeze)
    total = pair.store.read_sync(batch_total, pair.leader, pair.pair.sealer, made.batch)
    batch = frozen_batch(pair.leader, pair.pair.sealer, job, made.batch, total)
    pair.aggregate([1])
    with pytest.raises(BatchChangedError):
        pair.store.run_sync(
            freeze_collection, lease, pair.leader, batch, total.extent, pair.clock.instant()
        )
    assert pair.job(job).state == "waiting"
    assert pair.state_of(time_bucket(TIME)) is None


@pytest.mark.parametrize(
    ("error", "state"), [("invalidBatchSize", None), ("batchOverlap", "collected")]
)
async def test_c2_d4_a_final_refusal_fails_the_job_with_the_helpers_error(
    pair: DatabasePair, error: str, state: str | None
) -> None:
    """The interval is open again, except where the Helper has collected it."""
    pair.aggregate([1, 0, 1])
    job = pair.query(QUERY)
    assert pair.store.run_sync(refuse_collection, frozen(pair, job), pair.leader, error, "why")
    ended = pair.job(job)
    assert (ended.state, ended.error, ended.detail) == ("failed", error, "why")
    assert pair.state_of(time_bucket(TIME)) == state


async def test_c3_steady_uploads_do_not_starve_a_collection(pair: DatabasePair) -> None:
    """Uploads after the cut don't count, and the cut moves only if there were too few reports."""
    job = pair.query(QUERY)
    assert move(pair, job) == Wait()
    first = pair.upload(2)
    assert move(pair, job) == Wait()
    second = pair.upload(2)
    assert move(pair, job) == FixCut(second)
    for _ in range(20):
        pair.upload(5)
        assert move(pair, job) == Wait()
    pair.aggregate([1, 0])
    pair.decide(first)
    assert move(pair, job) == Wait()
    pair.decide(second)  # its reports were rejected: the count is short
    third = pair.seq
    assert move(pair, job) == FixCut(third)
    pair.upload(5)
    pair.aggregate([1, 1])
    pair.decide(*range(1, third + 1))
    pair.upload(5)
    frozen(pair, job)
    assert pair.job(job).n == 4


async def test_c3_an_upload_between_two_looks_is_not_missed(pair: DatabasePair) -> None:
    """A touch makes the job due now, however late its ``run_at`` was."""
    job = pair.query(QUERY)
    assert move(pair, job) == Wait()
    with pytest.raises(IndexError):
        pair.lease(job)
    pair.upload(3)
    assert isinstance(move(pair, job), FixCut)


async def test_c4_the_leader_checks_in_the_drafts_order(pair: DatabasePair) -> None:
    """Each request also has all later faults; a refused request stores nothing."""
    extension = (Extension(7, b""),)
    pair.aggregate([1, 0, 1])
    finished(pair, pair.query(QUERY))
    wrong_mode = CollectionJobReq(Query(None), b"p", extension)
    assert error_of(pair, wrong_mode) == "invalidMessage"
    bad_parameter = CollectionJobReq(Query(Interval(TIME, 0)), b"p", extension)
    assert error_of(pair, bad_parameter) == "invalidAggregationParameter"
    bad_batch = CollectionJobReq(Query(Interval(TIME, 0)), b"", extension)
    assert error_of(pair, bad_batch) == "batchInvalid"
    overlap = CollectionJobReq(Query(Interval(TIME, 1)), b"", extension)
    assert error_of(pair, overlap) == "batchOverlap"
    extended = CollectionJobReq(Query(Interval(TIME + 1, 1)), b"", extension)
    assert error_of(pair, extended) == "unsupportedExtension"
    with pytest.raises(Abort) as caught:
        pair.query_bytes(QUERY.encode()[:-1])
    assert caught.value.type == "invalidMessage"
    assert pair.store.read_sync(collections.waiting, pair.leader.task_pk) == []


async def test_c5_a_pending_collection_meets_a_batch_closed_for_another(
    pair: DatabasePair,
) -> None:
    """It fails with ``batchOverlap`` as soon as the other collection freezes."""
    first, second = pair.query(QUERY), pair.query(interval_query(TIME, 5))
    assert move(pair, second) == Wait()
    pair.aggregate([1, 0, 1])
    frozen(pair, first)
    assert move(pair, second) == Failed(second.id)
    assert pair.job(second).error == "batchOverlap"


async def test_c6_a_batch_at_its_target_is_taken_before_an_older_one(
    selected: DatabasePair,
) -> None:
    """It is taken at once, although an older batch is ready too."""
    selected.leader = replace(
        selected.leader, settings=replace(selected.leader.settings, batch_target_size=5)
    )
    older, full = selected.open_batch(), selected.open_batch()
    selected.aggregate([1, 1, 1], batch_id=older)
    selected.aggregate([1] * 5, batch_id=full)
    selected.upload(10)
    job = selected.query(NEXT_BATCH)
    frozen(selected, job)
    assert selected.job(job).lo == full


async def test_c6_without_a_full_batch_all_up_to_the_cut_is_decided_first(
    selected: DatabasePair,
) -> None:
    """Then the oldest ready batch is taken, however many reports arrived meanwhile."""
    selected.leader = replace(
        selected.leader, settings=replace(selected.leader.settings, batch_target_size=50)
    )
    ready = selected.open_batch()
    selected.aggregate([1, 1, 1], batch_id=ready)
    seq = selected.upload(2)
    job = selected.query(NEXT_BATCH)
    assert move(selected, job) == FixCut(seq)
    selected.upload(2)
    assert move(selected, job) == Wait()
    selected.aggregate([1, 0], batch_id=ready)
    selected.decide(seq)
    frozen(selected, job)
    assert (selected.job(job).lo, selected.job(job).n) == (ready, 5)


async def test_d1_a_lost_lease_changes_nothing(pair: DatabasePair) -> None:
    """Each transaction claims the job first, so it has no effect once the lease is lost."""
    pair.aggregate([1, 0, 1])
    job = pair.query(QUERY)
    lease = frozen(pair, job)
    assert pair.store.run_sync(finish_collection, lease, b"first")
    assert not pair.store.run_sync(finish_collection, lease, b"second")
    assert not pair.store.run_sync(refuse_collection, lease, pair.leader, "batchMismatch", "")
    assert (
        pair.store.run_sync(advance_collection, lease, pair.leader, Instant(NOW, NOW), LATER)
        is None
    )
    assert pair.job(job).response == b"first"
    assert pair.state_of(time_bucket(TIME)) == "collected"


async def test_d6_a_query_below_the_mark_is_expired_unless_it_exists(pair: DatabasePair) -> None:
    """An existing job is still found by its identity."""
    job = pair.query(QUERY)
    pair.leader = replace(pair.leader, expired_before=TIME + 1)
    assert pair.query(QUERY).id == job.id
    with pytest.raises(Abort) as caught:
        pair.query(interval_query(TIME, 2))
    assert (caught.value.type, caught.value.detail) == ("batchInvalid", "expired")
    assert move(pair, job) == Failed(job.id)
    assert pair.job(job).detail == "expired"


YEARS_AHEAD = TIME + 100_000
LARGE_BATCHES = TaskSettings(batch_target_size=100)


async def test_c3_reports_of_a_wrong_clock_hold_back_no_leader_selected_batch(
    selected: DatabasePair,
) -> None:
    """One that was accepted while the clock showed another year waits until then; the batch of the
    others is collected now.
    """
    selected.leader = replace(selected.leader, settings=LARGE_BATCHES)
    batch_id = selected.open_batch()
    selected.aggregate([1, 1, 1], batch_id=batch_id)
    selected.upload(1, time=YEARS_AHEAD)
    job = selected.query(NEXT_BATCH)
    assert move(selected, job) == Freeze(batch_id_range(batch_id))


async def test_c3_reports_of_a_wrong_clock_are_not_counted_for_a_batch(
    selected: DatabasePair,
) -> None:
    """They are in no batch for as long as they are too early."""
    selected.upload(3, time=YEARS_AHEAD)
    assert move(selected, selected.query(NEXT_BATCH)) == Wait()


async def test_c3_a_collection_waits_for_what_only_the_helper_called_early(
    selected: DatabasePair,
) -> None:
    """A Helper whose clock is held calls everything early; these reports are aggregated later."""
    selected.leader = replace(selected.leader, settings=LARGE_BATCHES)
    selected.aggregate([1, 1, 1], batch_id=selected.open_batch())
    selected.upload(2)
    selected.store.run_sync(
        lambda tx: tx.execute("UPDATE report_chunks SET run_at = run_at + 600000, attempts = 3")
    )
    job = selected.query(NEXT_BATCH)
    assert isinstance(move(selected, job), FixCut)
    selected.clock.advance((LATER - NOW) / 1000)
    assert move(selected, job) == Wait()


REFUSAL = ("unrecognizedTask", "who are you?")


def given_up(
    databases: DatabasePair, request: CollectionJobReq = QUERY, *, sent: bool = True
) -> CollectionJob:
    """A collection that was frozen, perhaps sent, and given up."""
    job = databases.query(request)
    lease = frozen(databases, job)
    if sent:
        assert databases.store.run_sync(collections.note_send, lease)
    at = databases.clock.instant()
    assert databases.store.run_sync(give_up_collection, lease, databases.leader, REFUSAL, at)
    assert not databases.store.run_sync(give_up_collection, lease, databases.leader, REFUSAL, at)
    return databases.job(job)


def counted(databases: DatabasePair) -> dict[str, int]:
    return databases.store.read_sync(counters.of_task, databases.leader.task_pk)


def create(databases: DatabasePair) -> None:
    """Run the creator's transaction."""
    limits, at = Limits(1, 100, 0), databases.clock.instant()
    databases.store.run_sync(create_jobs.create, databases.leader, limits, at, bytes)


async def test_d4_a_batch_of_which_no_request_was_sent_reopens_when_it_is_given_up(
    pair: DatabasePair,
) -> None:
    """The Helper can't have answered: later reports go into it, and another query gets it."""
    pair.aggregate([1, 0, 1])
    job = given_up(pair, sent=False)
    assert (job.state, job.error, job.detail) == ("failed", *REFUSAL)
    assert (job.leader_share, job.share_request) == (None, None)
    assert pair.state_of(time_bucket(TIME)) is None
    pair.aggregate([1])
    again = pair.query(QUERY)
    frozen(pair, again)
    assert pair.job(again).n == 4
    assert counted(pair)["collection_given_up"] == 1


async def test_d4_reports_that_come_too_late_for_a_given_up_batch_are_rejected_and_counted(
    pair: DatabasePair,
) -> None:
    """Its request is stored, so no later report can be in it; other queries don't get it either."""
    pair.aggregate([1, 0, 1])
    pair.upload(2)
    pair.decide(pair.seq)
    job = pair.query(QUERY)
    lease = frozen(pair, job)
    pair.upload(2)
    create(pair)
    assert counted(pair) == {}, "while the batch is closed, they wait"
    assert pair.store.run_sync(collections.note_send, lease)
    pair.store.run_sync(give_up_collection, lease, pair.leader, REFUSAL, pair.clock.instant())
    create(pair)
    assert counted(pair) == {"aggregate_batch_collected": 2, "collection_given_up": 1}
    assert error_of(pair, interval_query(TIME, 2)) == "batchOverlap"
    left = pair.store.read_sync(uncollected.of_task, pair.leader.task_pk, 0)
    assert left.aggregated == 3, "somebody is told to collect them"


@pytest.mark.parametrize("deleted", [True, False])
async def test_d4_an_identical_query_adopts_what_a_given_up_job_keeps(
    pair: DatabasePair, deleted: bool
) -> None:
    """Also after a Collector that tidies up has deleted the failed job, which it still finds
    otherwise; and as long as the reports live, though the interval has begun to expire.
    """
    pair.aggregate([1, 0, 1], time=TIME + 1)
    request = interval_query(TIME, 2)
    failed = given_up(pair, request)
    if deleted:
        assert pair.store.run_sync(delete_collection, pair.leader, failed.id, pair.clock.instant())
    pair.leader = replace(pair.leader, expired_before=TIME + 1)
    job = pair.query(request)
    assert (job.state, job.sends, job.id != failed.id) == ("frozen", 1, True)
    assert (job.share_request, job.n) == (failed.share_request, 3)
    assert job.leader_share != failed.leader_share, "it is sealed for its row"
    assert pair.state_of(time_bucket(TIME)) == "closed"
    assert pair.query(request).id == job.id
    assert pair.job(failed).state == ("deleted" if deleted else "failed")
    assert not pair.job(failed).is_given_up


async def test_d4_expired_reports_of_a_given_up_job_are_not_adopted(pair: DatabasePair) -> None:
    """The Helper refuses them."""
    pair.aggregate([1, 0, 1])
    given_up(pair)
    pair.leader = replace(pair.leader, expired_before=TIME + 1)
    assert error_of(pair, QUERY) == "batchInvalid"


async def test_a8_an_operator_gives_a_leader_selected_batch_up_for_the_next_one(
    selected: DatabasePair,
) -> None:
    """Its reports are counted; nobody is told to collect them, and the query gets another batch."""
    first, second = selected.open_batch(), selected.open_batch()
    for batch_id in (first, second):
        selected.aggregate([1, 1, 1], batch_id=batch_id)
    failed = given_up(selected, NEXT_BATCH, sent=False)
    assert selected.state_of(first) == "given_up", "it never reopens"

    def discard(tx: Tx) -> int:
        row = jobs.by_pk(tx, "collection", failed.pk)
        assert row is not None
        return abandon(tx, row, selected.clock.instant())

    assert selected.store.run_sync(discard) == 3
    assert counted(selected) == {"collection_given_up": 1, "contribution_uncollectable": 3}
    left = selected.store.read_sync(uncollected.of_task, selected.leader.task_pk, 0)
    assert left.aggregated == 3
    job = selected.query(NEXT_BATCH)
    frozen(selected, job)
    assert selected.job(job).lo == second


async def test_f2_a_batch_that_is_kept_goes_with_its_sealing_key(pair: DatabasePair) -> None:
    """Its reports are counted; the batch stays closed, as the Helper may have answered."""
    pair.aggregate([1, 0, 1])
    failed = given_up(pair)
    forgetting = Forgetting(pair.pair.sealer.key_ids[0], pair.clock.instant())
    column = sealed.COLLECTION_SHARES
    pair.store.run_sync(forget_page, column, -1, forgetting)
    assert counted(pair) == {"collection_given_up": 1, "contribution_lost": 3}
    assert not pair.job(failed).is_given_up
    assert pair.state_of(time_bucket(TIME)) == "collected"


async def test_d4_a_leader_selected_batch_that_is_refused_for_good_is_counted(
    selected: DatabasePair,
) -> None:
    """It is bound for good (A8), so no result ever contains its reports."""
    selected.aggregate([1, 1, 1], batch_id=selected.open_batch())
    lease = frozen(selected, selected.query(NEXT_BATCH))
    selected.store.run_sync(refuse_collection, lease, selected.leader, "batchMismatch", "x")
    assert counted(selected) == {"contribution_uncollectable": 3}
