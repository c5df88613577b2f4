"""Quarantine after a restore, and reopening by an operator; both can be repeated."""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dapd.admin.restore import Accept, accept
from dapd.commits.collections import delete_collection
from dapd.commits.restore import accepted_range, inspect, quarantine, restore_accept
from dapd.commits.tasks import add_task as add_task_commit
from dapd.datastore import Datastore, Tx, batches, collections, leader_jobs, outstanding, tasks
from dapd.datastore.sqlite import Row
from dapd.errors import UsageError
from dapd.messages.common import BatchMode, b64url_encode
from dapd.protocol.batches import BucketRange, batch_id_range, gaps, merged, time_bucket
from dapd.protocol.states import RangeState
from dapd.protocol.task import Instant, Task
from tests.clock import NOW, PRECISION, TIME
from tests.contexts import add_task, open_store
from tests.task_pair import task_pair

AT = Instant(NOW, NOW)
LEEWAY = 300.0
MARK = TIME + 1


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Datastore]:
    opened = open_store(tmp_path / "dapd.sqlite")
    yield opened.datastore
    opened.close()


def added(store: Datastore, mode: BatchMode = BatchMode.TIME_INTERVAL, *, leader: bool) -> Task:
    pair = task_pair(batch_mode=mode)
    return add_task(store, pair.leader if leader else pair.helper, pair)


def close(
    store: Datastore, task: Task, start: int, end: int, state: RangeState = RangeState.COLLECTED
) -> None:
    lo, hi = time_bucket(start), time_bucket(end)
    store.run_sync(batches.close, task.task_pk, lo, hi, state=state, collection_pk=None)


def rows(store: Datastore, sql: str) -> list[Row]:
    def look(tx: Tx) -> list[Row]:
        return tx.all(sql)

    return store.read_sync(look)


def quarantined(store: Datastore, task: Task) -> list[tuple[int, int]]:
    found = store.read_sync(batches.quarantined_ranges, task.task_pk)
    return [(int.from_bytes(lo), int.from_bytes(hi)) for lo, hi in found]


def reopen(store: Datastore, batch: tuple[int, int] | bytes | None) -> list[BucketRange]:
    def run(tx: Tx) -> list[BucketRange]:
        [outline] = tasks.outlines(tx)
        return restore_accept(tx, outline, accepted_range(outline, batch))

    return store.run_sync(run)


@given(st.lists(st.integers(0, 30), unique=True), st.integers(0, 30), st.integers(1, 30))
def test_gaps_and_ranges_are_the_whole(ends: list[int], start: int, length: int) -> None:
    """Each bucket is in exactly one range or gap; merging changes no bucket."""
    whole = BucketRange(time_bucket(start), time_bucket(start + length))
    ends = sorted(ends)[: len(ends) // 2 * 2]
    taken = [
        BucketRange(time_bucket(lo), time_bucket(hi))
        for lo, hi in zip(ends[::2], ends[1::2], strict=True)
    ]
    found = gaps(whole, taken)
    for bucket in map(time_bucket, range(start, start + length)):
        holding = [each for each in [*taken, *found] if each.lo <= bucket < each.hi]
        assert len(holding) == 1
    assert all(whole.lo <= each.lo < each.hi <= whole.hi for each in found)
    joined = merged(sorted([*taken, *found]))
    assert all(one.hi < other.lo for one, other in pairwise(joined))


@pytest.mark.parametrize("leader", [True, False])
def test_every_interval_up_to_now_is_closed_but_those_that_are(
    store: Datastore, *, leader: bool
) -> None:
    """C1: gaps between closed ranges are filled, up to the newest report there may have been."""
    task = added(store, leader=leader)
    close(store, task, TIME - 10, TIME - 8)
    close(store, task, TIME - 5, TIME - 4, RangeState.CLOSED)
    store.run_sync(quarantine, AT, LEEWAY)
    assert quarantined(store, task) == [(0, TIME - 10), (TIME - 8, TIME - 5), (TIME - 4, MARK)]
    assert rows(store, "SELECT quarantined_before, expired_before FROM tasks") == [(MARK, 0)]
    assert store.read_sync(batches.bucket_state, task.task_pk, time_bucket(MARK)) is None


def test_the_mark_goes_by_the_clock_that_is_ahead(store: Datastore) -> None:
    """D6: a machine whose clock starts in the past still refuses all earlier reports."""
    added(store, leader=True)
    store.run_sync(quarantine, Instant(0, NOW), LEEWAY)
    assert rows(store, "SELECT quarantined_before FROM tasks") == [(MARK,)]


@pytest.mark.parametrize("mode", [BatchMode.TIME_INTERVAL, BatchMode.LEADER_SELECTED])
def test_a_second_quarantine_changes_nothing(store: Datastore, mode: BatchMode) -> None:
    """A start that is interrupted before it is recorded repeats it."""
    task = added(store, mode, leader=True)
    store.run_sync(outstanding.insert, task.task_pk, secrets.token_bytes(32))

    def all_rows() -> list[list[Row]]:
        tables = ("tasks", "collected", "restores", "task_counters", "aggregation_jobs")
        return [rows(store, f"SELECT * FROM {table}") for table in tables]  # noqa: S608

    store.run_sync(quarantine, AT, LEEWAY)
    once = all_rows()
    store.run_sync(quarantine, AT, LEEWAY)
    assert all_rows() == once


def test_leader_selected_batches_are_closed_and_not_offered(store: Datastore) -> None:
    """C6: they take neither reports nor collections until an operator accepts them."""
    task = added(store, BatchMode.LEADER_SELECTED, leader=True)
    ids = sorted(secrets.token_bytes(32) for _ in range(3))
    for batch_id in ids:
        store.run_sync(outstanding.insert, task.task_pk, batch_id)
    taken = batch_id_range(ids[0])
    store.run_sync(
        batches.close, task.task_pk, *taken, state=RangeState.COLLECTED, collection_pk=None
    )
    store.run_sync(quarantine, AT, LEEWAY)
    offered = store.read_sync(outstanding.open_batches, task.task_pk, 0)
    assert [each.batch_id for each in offered] == [ids[0]]
    assert reopen(store, ids[2]) == [batch_id_range(ids[2])]
    offered = store.read_sync(outstanding.open_batches, task.task_pk, 0)
    assert {each.batch_id for each in offered} == {ids[0], ids[2]}


def test_a_frozen_collection_counts_as_sent(store: Datastore) -> None:
    """A6: deleted now, it leaves its batch collected, because the Helper may have been asked after
    the backup was made.
    """
    task = added(store, leader=True)
    lo, hi = time_bucket(TIME - 2), time_bucket(TIME - 1)
    job = store.run_sync(collections.insert, task.task_pk, bytes(16), (lo, hi), b"body", AT)

    def freeze(tx: Tx) -> None:
        tx.execute("UPDATE collection_jobs SET state = 'frozen'")
        batches.close(tx, task.task_pk, lo, hi, state=RangeState.CLOSED, collection_pk=job.pk)

    store.run_sync(freeze)
    store.run_sync(quarantine, AT, LEEWAY)
    store.run_sync(delete_collection, task, job.id, AT)
    assert store.read_sync(batches.bucket_state, task.task_pk, lo) == "collected"


def test_unfinished_jobs_end_as_lost(store: Datastore) -> None:
    """D4: they are counted, with the reason; a Helper's jobs stay."""
    task = added(store, leader=True)
    job = leader_jobs.NewJob(bytes(16), task.task_pk, 7, b"", NOW, NOW)
    store.run_sync(leader_jobs.insert, job)
    store.run_sync(quarantine, AT, LEEWAY)
    assert rows(store, "SELECT state, last_error FROM aggregation_jobs") == [
        ("lost", "restored from a backup")
    ]
    assert rows(store, "SELECT name, value FROM task_counters") == [("aggregate_lost", 7)]


def test_accepting_cuts_intervals_out(store: Datastore) -> None:
    """The named interval reopens, its neighbours stay closed, and the mark stays."""
    task = added(store, leader=True)
    close(store, task, TIME - 5, TIME - 4)
    store.run_sync(quarantine, AT, LEEWAY)
    opened = reopen(store, (TIME - 7, TIME - 2))
    named = [(int.from_bytes(lo), int.from_bytes(hi)) for lo, hi in opened]
    assert named == [(TIME - 7, TIME - 5), (TIME - 4, TIME - 2)]
    assert quarantined(store, task) == [(0, TIME - 7), (TIME - 2, MARK)]
    assert store.read_sync(batches.bucket_state, task.task_pk, time_bucket(TIME - 5)) == "collected"
    assert reopen(store, (TIME - 7, TIME - 2)) == []
    assert len(reopen(store, None)) == 2
    assert quarantined(store, task) == []
    assert rows(store, "SELECT quarantined_before FROM tasks") == [(MARK,)]


def test_a_task_added_after_a_restore_is_quarantined_up_to_it(store: Datastore) -> None:
    """D2, C1: the task may have existed after the backup and be forgotten as a whole."""
    store.run_sync(quarantine, AT, LEEWAY)
    pair = task_pair()
    store.run_sync(add_task_commit, pair.helper, pair.sealer)
    [outline] = store.read_sync(tasks.outlines)
    assert outline.quarantined_before == MARK
    found = store.read_sync(inspect, outline, 10, everything=False)
    assert found.ranges == [BucketRange(time_bucket(0), time_bucket(MARK))]


@pytest.mark.parametrize(
    ("request_", "text"),
    [
        ({"task": "!"}, "no task begins with"),
        ({"since": 1, "until": PRECISION}, "multiples of time_precision"),
        ({"since": 2 * PRECISION, "until": PRECISION}, "the second one later"),
        ({"batch": b64url_encode(bytes(32))}, "leader-selected"),
        ({"since": (MARK + 1) * PRECISION}, "nothing of that is quarantined"),
    ],
)
def test_what_is_accepted_must_make_sense(
    store: Datastore, request_: dict[str, object], text: str
) -> None:
    """C7: the error says what to write instead."""
    task = added(store, leader=True)
    store.run_sync(quarantine, AT, LEEWAY)
    given_ = Accept(**{"task": task.id_text, **request_})  # type: ignore[arg-type]
    with pytest.raises(UsageError, match=text):
        store.run_sync(accept, given_)


def test_accepting_speaks_seconds(store: Datastore) -> None:
    """C7: the answer uses the units of the request."""
    task = added(store, leader=False)
    store.run_sync(quarantine, AT, LEEWAY)
    request = Accept(task.id_text[:8], since=PRECISION, until=3 * PRECISION)
    assert store.run_sync(accept, request).intervals == ((PRECISION, 3 * PRECISION),)
