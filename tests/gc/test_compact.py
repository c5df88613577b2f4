"""Compaction on both sides of a task, with shares that add up to known results."""

from __future__ import annotations

import secrets
import tempfile
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import msgspec
import pytest
import trio
from hypothesis import given, settings
from hypothesis import strategies as st

from dapd.commits.aggregate_share import ShareRequest, serve_aggregate_share
from dapd.commits.batch_total import BatchTotal, batch_total
from dapd.commits.collections import BatchChangedError, advance_collection, freeze_collection
from dapd.commits.garbage import ContributionsChangedError, compact_bucket
from dapd.config import Gc
from dapd.crypto import batch_share_aad, make_sealer
from dapd.datastore import Datastore, Tx, batches, collections
from dapd.datastore.batches import Contribution
from dapd.driver.collection import collection_response, frozen_batch
from dapd.gc import compact as compaction
from dapd.gc import loop
from dapd.gc.compact import Compaction
from dapd.messages.collection import AggregateShare, AggregateShareReq, CollectionJobReq
from dapd.messages.common import BatchMode
from dapd.protocol.batches import BucketRange, batch_id_range, time_bucket
from dapd.protocol.collect import Freeze
from dapd.protocol.states import RangeState
from dapd.protocol.task import Instant, Task
from dapd.runtime.context import Context
from tests.clock import NOW, TIME
from tests.database_pair import (
    NEXT_BATCH,
    DatabasePair,
    interval_query,
    leader_context,
    open_databases,
)
from tests.effort import counting

BUCKET = time_bucket(TIME)
FIELD = 2**64 - 2**32 + 1
"""A Prio3Count aggregate share is one element of this field, little-endian."""

Part = tuple[int, bytes, int, int]
"""What one job adds: reports, checksum, their time, and the share before it is reduced."""


@dataclass
class Side:
    """One Aggregator of the task."""

    databases: DatabasePair
    store: Datastore
    task: Task
    context: Context

    def __post_init__(self) -> None:
        self.compaction = Compaction(self.context)

    def add(self, bucket: bytes, parts: Sequence[Part]) -> None:
        """Add what so many jobs contribute."""
        self.store.run_sync(self._add, bucket, parts)

    def _add(self, tx: Tx, bucket: bytes, parts: Sequence[Part]) -> None:
        for n, checksum, time, value in parts:
            job_id = secrets.token_bytes(16)
            aad = batch_share_aad(self.task.task_id, job_id, bucket)
            share = self.databases.pair.sealer.seal(aad, (value % FIELD).to_bytes(8, "little"))
            contribution = Contribution(bucket, job_id, n, checksum, time, time, share)
            batches.add_contribution(tx, self.task.task_pk, contribution)

    def fill(self, count: int, bucket: bytes = BUCKET) -> None:
        self.add(
            bucket, [(n % 3 + 1, bytes([n % 256]) * 32, TIME + n % 7, n) for n in range(count)]
        )

    def rows(self, bucket: bytes = BUCKET) -> int:
        return self.store.read_sync(batches.extent, self.task.task_pk, *batch_id_range(bucket))[0]

    def total(self, batch: BucketRange | None = None) -> BatchTotal:
        sealer = self.databases.pair.sealer
        return self.store.read_sync(batch_total, self.task, sealer, batch or batch_id_range(BUCKET))

    async def compact(self) -> None:
        await self.compaction.run_round()

    def merged(self, size: int) -> Callable[[], None]:
        """Begin a compaction that has added up ``size`` contributions, but has not committed."""
        parts = self.store.read_sync(compaction.load, self.task, BUCKET, size)
        merged = compaction.merge_contributions(self.task, self.databases.pair.sealer, parts)
        pks = [part.share_pk for part in parts]
        return partial(self.store.run_sync, compact_bucket, self.task.task_pk, pks, merged)


@asynccontextmanager
async def sides(
    path: Path, mode: BatchMode = BatchMode.TIME_INTERVAL
) -> AsyncIterator[tuple[Side, Side]]:
    """The Leader's side and the Helper's."""
    async with open_databases(path, mode=mode, min_batch_size=1) as databases:
        other = replace(databases, store=databases.helper_store)
        async with leader_context(databases) as leader, leader_context(other) as helper:
            yield (
                Side(databases, databases.store, databases.leader, leader),
                Side(databases, databases.helper_store, databases.helper, helper),
            )


@pytest.fixture
async def leader(tmp_path: Path) -> AsyncIterator[Side]:
    async with sides(tmp_path) as (side, _):
        yield side


def content(total: BatchTotal) -> tuple[object, ...]:
    return total.n, total.checksum, total.time_min, total.time_max, total.share


@pytest.mark.parametrize("count", [64, 65, 577, 1100])
async def test_a_crowded_bucket_becomes_one_contribution(leader: Side, count: int) -> None:
    """This holds however many it had; the sum stays, and the next round finds nothing to do."""
    leader.fill(count)
    before = leader.total()
    await leader.compact()
    after = leader.total()
    assert leader.rows() < compaction.MANY
    assert content(after) == content(before)
    await leader.compact()
    assert leader.total().extent == after.extent


async def test_a_bucket_that_was_merged_is_left_alone_until_it_is_crowded_again(
    leader: Side,
) -> None:
    """A round costs nothing if it would gain nothing."""
    leader.fill(64)
    await leader.compact()
    assert leader.rows() == 1
    leader.fill(62)
    await leader.compact()
    assert leader.rows() == 63
    leader.fill(1)
    await leader.compact()
    assert leader.rows() == 1


async def test_only_buckets_that_have_got_something_are_looked_at_again(leader: Side) -> None:
    """SQLite does as much beside 100 others as beside 10, however many contributions they have."""
    efforts = []
    last = 0
    for first, end in ((0, 10), (10, 100)):
        for number in range(first, end):
            leader.fill(5 if number % 2 else 4, time_bucket(TIME + number))
        crowded = {time_bucket(TIME + number) for number in range(first, end) if number % 2}
        found, last = leader.store.read_sync(batches.crowded, last, 5)
        assert {bucket for _, bucket in found} == crowded
        leader.fill(1, time_bucket(TIME + first))
        with counting(leader.store.path) as (tx, effort):
            found, last = batches.crowded(tx, last, 5)
        assert found == [(leader.task.task_pk, time_bucket(TIME + first))]
        efforts.append(effort.steps)
    assert efforts[0] == efforts[1]


@pytest.mark.parametrize("state", RangeState)
async def test_c2_a_batch_that_is_shut_is_left_as_it_is(leader: Side, state: RangeState) -> None:
    """Its sum is fixed; this holds even if it was closed while its contributions were added up."""
    leader.fill(64)
    commit = leader.merged(64)
    batch = batch_id_range(BUCKET)
    leader.store.run_sync(
        batches.close, leader.task.task_pk, *batch, state=state, collection_pk=None
    )
    with pytest.raises(ContributionsChangedError):
        commit()
    await leader.compact()
    assert leader.rows() == 64


async def test_d1_what_was_added_up_is_replaced_once_or_not_at_all(leader: Side) -> None:
    """If any of the parts was merged or deleted meanwhile, all of them stay as they are."""
    leader.fill(10)
    first, second = leader.merged(4), leader.merged(6)
    first()
    before = leader.total()
    with pytest.raises(ContributionsChangedError):
        second()
    with pytest.raises(ContributionsChangedError):
        first()
    assert leader.rows() == 7
    assert leader.total() == before


async def test_c2_a_collection_whose_batch_was_merged_while_it_was_summed_sums_again(
    leader: Side,
) -> None:
    """The freeze sees that these are other contributions, although nothing was added."""
    leader.fill(64)
    databases = leader.databases
    job = databases.query(interval_query(TIME, 1))
    lease = databases.lease(job)
    move = leader.store.run_sync(
        advance_collection, lease, databases.leader, databases.clock.instant(), NOW
    )
    assert isinstance(move, Freeze)
    for disturbed in (True, False):
        total = leader.total(move.batch)
        if disturbed:
            await leader.compact()
            assert leader.rows() == 1
        batch = frozen_batch(
            databases.leader, databases.pair.sealer, databases.job(job), move.batch, total
        )
        at, run = databases.clock.instant(), leader.store.run_sync
        if disturbed:
            with pytest.raises(BatchChangedError):
                run(freeze_collection, lease, databases.leader, batch, total.extent, at)
        else:
            assert run(freeze_collection, lease, databases.leader, batch, total.extent, at)


async def test_contributions_that_do_not_open_are_left_and_others_are_merged(
    leader: Side,
) -> None:
    """A sealing key may be missing for a while, without any loss."""
    leader.fill(64)
    leader.fill(64, time_bucket(TIME + 1))

    def replace_share(tx: Tx, share: bytes) -> bytes:
        row = tx.one("SELECT share FROM batch_shares WHERE share_pk = 3")
        assert row is not None
        tx.execute("UPDATE batch_shares SET share = :share WHERE share_pk = 3", share=share)
        return bytes(row[0])

    right = leader.store.run_sync(replace_share, make_sealer([bytes(32)]).seal(b"", bytes(8)))
    await leader.compact()
    assert leader.rows() == 64
    assert leader.rows(time_bucket(TIME + 1)) == 1
    leader.store.run_sync(replace_share, right)
    await leader.compact()
    assert leader.rows() == 1, "it is looked at again, although it has got nothing since"


async def test_long_shares_are_merged_few_at_a_time(leader: Side) -> None:
    """Bytes also bound a step's memory and its transaction."""
    assert compaction.page_size(leader.task, 24) == 3
    assert compaction.page_size(leader.task, 1) == 2
    leader.fill(64)
    before = leader.total()
    await Compaction(leader.context, page_bytes=64).run_round()
    assert leader.rows() == 1
    assert content(leader.total()) == content(before)


async def test_d6_expired_buckets_are_left_to_the_garbage_collector(leader: Side) -> None:
    """They are about to be deleted."""
    leader.fill(64)
    leader.store.run_sync(
        lambda tx: tx.execute("UPDATE tasks SET expired_before = :time", time=TIME + 1)
    )
    await leader.context.tasks.reload()
    await leader.compact()
    assert leader.rows() == 64


async def test_the_garbage_collector_s_loop_compacts(leader: Side) -> None:
    """It does so in each of its rounds."""
    leader.fill(64)
    config = msgspec.structs.replace(leader.context.config, gc=Gc(interval=0.001))
    leader.context.config = config
    with trio.fail_after(60):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(loop.run, leader.context)
            while leader.rows() != 1:
                await trio.lowlevel.checkpoint()
            leader.context.drain()


CONTRIBUTIONS = st.tuples(
    st.integers(1, 200),  # how many jobs
    st.integers(0, 1),  # to which bucket
    st.integers(0, 2**64),  # what makes their shares
)
ROUNDS = st.sampled_from(["leader", "helper"])


@settings(max_examples=15, deadline=None)
@given(
    st.sampled_from(list(BatchMode)),
    st.lists(st.one_of(CONTRIBUTIONS, ROUNDS), min_size=1, max_size=8),
    st.booleans(),
)
def test_compaction_never_changes_what_is_collected(
    mode: BatchMode, events: list[tuple[int, int, int] | str], between: bool
) -> None:
    """Whenever it runs, on either side and in both batch modes, count, checksum, interval and
    result are the same, and the Helper agrees.
    """
    with tempfile.TemporaryDirectory() as name:
        trio.run(play, Path(name), mode, [(1, 0, 1), *events], between)


@dataclass
class Expected:
    n: int = 0
    result: int = 0
    start: int = TIME + 2
    end: int = 0


async def play(
    path: Path, mode: BatchMode, events: list[tuple[int, int, int] | str], between: bool
) -> None:
    async with sides(path, mode) as (leader, helper):
        by_time = mode is BatchMode.TIME_INTERVAL
        buckets = [time_bucket(TIME), time_bucket(TIME + 1)]
        if not by_time:
            buckets = [leader.databases.open_batch()] * 2
        truth = Expected()
        for event in events:
            if isinstance(event, str):
                await (leader if event == "leader" else helper).compact()
            else:
                jobs, which, seed = event
                contribute(leader, helper, buckets[which], (jobs, TIME + which, seed), truth)
        request = interval_query(TIME, 2) if by_time else NEXT_BATCH
        await collect(leader, helper, request, between, truth)


def contribute(
    leader: Side, helper: Side, bucket: bytes, what: tuple[int, int, int], truth: Expected
) -> None:
    jobs, time, seed = what
    mine, theirs = list[Part](), list[Part]()
    for job in range(jobs):
        n, mask, checksum = job % 3 + 1, seed * (job + 1), (seed + job).to_bytes(32, "big")
        value = (seed + job) % (n + 1)
        mine.append((n, checksum, time, mask))
        theirs.append((n, checksum, time, value - mask))
        truth.n += n
        truth.result += value
    leader.add(bucket, mine)
    helper.add(bucket, theirs)
    truth.start, truth.end = min(truth.start, time), max(truth.end, time + 1)


async def collect(
    leader: Side, helper: Side, request: CollectionJobReq, between: bool, truth: Expected
) -> None:
    """Freeze, ask the Helper, and open both shares; with ``between``, compact at each step."""
    databases, sealer = leader.databases, leader.databases.pair.sealer
    job = databases.query(request)
    lease = databases.lease(job)
    move = leader.store.run_sync(
        advance_collection, lease, leader.task, databases.clock.instant(), NOW
    )
    assert isinstance(move, Freeze), move
    if between:
        await leader.compact()
    total = leader.total(move.batch)
    frozen = frozen_batch(leader.task, sealer, databases.job(job), move.batch, total)
    assert leader.store.run_sync(
        freeze_collection, lease, leader.task, frozen, total.extent, databases.clock.instant()
    )
    if between:
        await leader.compact()
        await helper.compact()
    message = AggregateShareReq.decode(frozen.share_request)
    body_hash = collections.request_hash(frozen.share_request)
    share_request = ShareRequest(helper.task, bytes(16), body_hash, message)
    served = helper.store.run_sync(serve_aggregate_share, share_request, sealer, Instant(NOW, NOW))
    share = AggregateShare.decode(served.response).encrypted_aggregate_share
    response = collection_response(leader.task, sealer, databases.job(job), share)
    answer, result = databases.result(request, response)
    assert (answer.report_count, result) == (truth.n, truth.result)
    assert (answer.interval.start, answer.interval.end) == (truth.start, truth.end)
