"""Serving an aggregate share, which is opened with the Collector's key."""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest

from dapd.commits.aggregate_share import ShareRequest, delete_aggregate_share, serve_aggregate_share
from dapd.crypto import Keyring, batch_share_aad
from dapd.datastore import Datastore, batches
from dapd.datastore.share_jobs import StoredShare
from dapd.errors import Abort
from dapd.messages.collection import (
    AggregateShare,
    AggregateShareAad,
    AggregateShareReq,
    BatchSelector,
    CollectionJobReq,
    Query,
)
from dapd.messages.common import BatchMode, Extension, Interval
from dapd.messages.task import Prio3Histogram
from dapd.protocol.batches import time_bucket
from dapd.protocol.helper import judge_init
from dapd.protocol.task import Instant, Task, TaskSettings
from dapd.vdaf import merge, unshard
from tests.clock import NOW, PRECISION, TIME
from tests.contexts import add_task, open_store
from tests.task_pair import ANY_TIME, TaskPair, leader_job, make_reports, task_pair

BATCH_ID = bytes(range(32))


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Datastore]:
    opened = open_store(tmp_path / "dapd.sqlite")
    yield opened.datastore
    opened.close()


@dataclass
class AggregatedBatches:
    """A Helper's datastore with aggregated jobs, and the Leader's shares of them."""

    store: Datastore
    pair: TaskPair
    task: Task
    count: int = 0
    checksum: int = 0
    leader_shares: list[bytes] = field(default_factory=list)

    def aggregate(
        self, measurements: list[int], *, time: int = TIME, batch_id: bytes | None = None
    ) -> None:
        """Commit one job on both sides."""
        reports = make_reports(self.pair, measurements, times=[time] * len(measurements))
        job = leader_job(self.pair, reports, batch_id=batch_id)
        rows = judge_init(self.task, job.body).rows
        keyring, job_id = Keyring([self.pair.helper_key]), job.job_id
        verified = rows.verify(
            self.task.parameters, ANY_TIME, keyring, self.pair.sealer, job_id, batch_id,
            bytes(rows.count),
        )  # fmt: skip
        done = verified.finish([], bytes(rows.count))
        self.store.run_sync(batches.add_contributions, self.task.task_pk, job_id, done.buckets)
        for total in job.lead(done.response).buckets:
            aad = batch_share_aad(self.task.task_id, job_id, total.bucket)
            self.leader_shares.append(self.pair.sealer.open(aad, total.share))
            self.count += total.count
            self.checksum ^= int.from_bytes(total.checksum)

    def request(self, batch: Interval | bytes, query: Interval | None = None) -> AggregateShareReq:
        """Build the request of an honest Leader."""
        if isinstance(batch, Interval) and query is None:
            query = batch
        return AggregateShareReq(
            CollectionJobReq(Query(query)),
            BatchSelector(batch),
            self.count,
            self.checksum.to_bytes(32),
        )

    def serve(self, message: AggregateShareReq) -> StoredShare:
        digest = hashlib.sha256(message.encode()).digest()
        request = ShareRequest(self.task, secrets.token_bytes(16), digest, message)
        return self.store.run_sync(
            serve_aggregate_share, request, self.pair.sealer, Instant(NOW, NOW)
        )

    def refusal(self, message: AggregateShareReq) -> str | None:
        with pytest.raises(Abort) as caught:
            self.serve(message)
        return caught.value.type

    def collected(self, bucket: bytes) -> bool:
        state = self.store.read_sync(batches.bucket_state, self.task.task_pk, bucket)
        return state == "collected"

    def result(self, message: AggregateShareReq, share: StoredShare) -> int | list[int]:
        """Return the Collector's result from this share and the Leader's."""
        request = message.collection_job_req
        aad = AggregateShareAad(self.task.task_id, self.task.configuration, request)
        sealed = AggregateShare.decode(share.response).encrypted_aggregate_share
        info = b"dap-18 aggregate share\x03\x00"
        plain = self.pair.collector_key.open(info, aad.encode(), sealed.enc, sealed.payload)
        leader = merge(self.task.vdaf, self.leader_shares)
        return unshard(self.task.vdaf, leader, plain, self.count)


@pytest.fixture
def bench(store: Datastore) -> AggregatedBatches:
    pair = task_pair(Prio3Histogram(4, 2), min_batch_size=3)
    return AggregatedBatches(store, pair, add_task(store, pair.helper, pair))


@pytest.fixture
def selected(store: Datastore) -> AggregatedBatches:
    pair = task_pair(min_batch_size=2, batch_mode=BatchMode.LEADER_SELECTED)
    return AggregatedBatches(store, pair, add_task(store, pair.helper, pair))


def test_the_share_opens_with_the_collectors_key_and_the_result_is_exact(
    bench: AggregatedBatches,
) -> None:
    """Contributions of several jobs and buckets are merged."""
    bench.aggregate([0, 1, 3])
    bench.aggregate([3, 3], time=TIME + 1)
    message = bench.request(Interval(TIME, 2))
    assert bench.result(message, bench.serve(message)) == [1, 1, 0, 3]


def test_a_leader_selected_batch_is_served_by_its_id(selected: AggregatedBatches) -> None:
    selected.aggregate([1, 0, 1], batch_id=BATCH_ID)
    message = selected.request(BATCH_ID)
    assert selected.result(message, selected.serve(message)) == 2
    assert selected.collected(BATCH_ID)  # I7
    assert not selected.collected(bytes(32))


def test_a1_a_repeat_gets_the_same_bytes(bench: AggregatedBatches) -> None:
    """The share is sealed once, and identity comes before the check for overlap (A4)."""
    bench.aggregate([0, 1, 3])
    message = bench.request(Interval(TIME, 1))
    assert bench.serve(message) == bench.serve(message)


def test_a6_a_deleted_share_leaves_its_batch_collected(bench: AggregatedBatches) -> None:
    bench.aggregate([0, 1, 3])
    message = bench.request(Interval(TIME, 1))
    share = bench.serve(message)
    assert bench.store.run_sync(delete_aggregate_share, bench.task.task_pk, share.id)
    assert not bench.store.run_sync(delete_aggregate_share, bench.task.task_pk, share.id)
    assert bench.refusal(message) == "batchOverlap"


def test_c1_the_whole_query_is_collected_its_empty_buckets_too(bench: AggregatedBatches) -> None:
    """A query may span 2^60 buckets, of which the Leader selects a part."""
    bench.aggregate([0, 1, 3])
    bench.serve(bench.request(Interval(TIME, 1), Interval(TIME - 2, 2**60)))
    assert bench.collected(time_bucket(TIME - 2))
    assert bench.collected(time_bucket(TIME + 2**59))
    assert not bench.collected(time_bucket(TIME - 3))
    assert bench.refusal(bench.request(Interval(TIME + 2**50, 1))) == "batchOverlap"


def broken(bench: AggregatedBatches) -> dict[str, AggregateShareReq]:
    """Return requests, each of which breaks one check of C4 and all later ones, by name."""
    mismatch = replace(bench.request(Interval(TIME, 1)), report_count=99)
    extensions = replace(
        mismatch, collection_job_req=CollectionJobReq(Query(Interval(TIME, 1)), b"", _UNKNOWN)
    )
    disorder = replace(
        mismatch, collection_job_req=CollectionJobReq(Query(Interval(TIME, 1)), b"", _REPEATED)
    )
    parameter = replace(
        mismatch, collection_job_req=CollectionJobReq(Query(Interval(TIME, 1)), b"\1", _UNKNOWN)
    )
    small = replace(parameter, batch_selector=BatchSelector(Interval(TIME + 1, 1)))
    small = replace(
        small, collection_job_req=CollectionJobReq(Query(Interval(TIME, 2)), b"\1", _UNKNOWN)
    )
    outside = replace(parameter, batch_selector=BatchSelector(Interval(TIME, 2)))
    empty = replace(parameter, batch_selector=BatchSelector(Interval(TIME, 0)))
    mode = replace(parameter, batch_selector=BatchSelector(BATCH_ID))
    return {
        "mismatch": mismatch,
        "extensions": extensions,
        "disorder": disorder,
        "parameter": parameter,
        "small": small,
        "outside": outside,
        "empty": empty,
        "mode": mode,
    }


_UNKNOWN = (Extension(5, b""),)
_REPEATED = (Extension(5, b""), Extension(5, b""))


@pytest.mark.parametrize(
    ("which", "error"),
    [
        ("mode", "invalidMessage"),
        ("outside", "batchInvalid"),
        ("empty", "batchInvalid"),
        ("small", "invalidBatchSize"),
        ("parameter", "invalidMessage"),
        ("disorder", "invalidExtension"),
        ("extensions", "unsupportedExtension"),
        ("mismatch", "batchMismatch"),
    ],
)
def test_c4_errors_in_their_order_and_a_refused_request_marks_nothing(
    bench: AggregatedBatches, which: str, error: str
) -> None:
    """Each request breaks later checks too; afterwards the honest one is served."""
    bench.aggregate([0, 1, 3])
    refused = broken(bench)[which]
    assert bench.refusal(refused) == error
    assert not bench.collected(time_bucket(TIME))
    honest = bench.request(Interval(TIME, 1))
    assert bench.result(honest, bench.serve(honest)) == [1, 1, 0, 1]


def test_c4_overlap_comes_before_the_batch_size(bench: AggregatedBatches) -> None:
    """An empty part of a collected query is ``batchOverlap``, not ``invalidBatchSize``."""
    bench.aggregate([0, 1, 3])
    bench.serve(bench.request(Interval(TIME, 1), Interval(TIME, 5)))
    small = replace(bench.request(Interval(TIME + 3, 4)), report_count=0)
    assert bench.refusal(small) == "batchOverlap"


def test_c4_one_report_fewer_than_the_minimum_is_an_invalid_batch_size(
    bench: AggregatedBatches,
) -> None:
    """The Helper counts the reports itself. Nothing is collected, and the next one completes it."""
    bench.aggregate([0, 1])
    assert bench.refusal(bench.request(Interval(TIME, 1))) == "invalidBatchSize"
    assert not bench.collected(time_bucket(TIME))
    bench.aggregate([3])
    complete = bench.request(Interval(TIME, 1))
    assert bench.result(complete, bench.serve(complete)) == [1, 1, 0, 1]


def test_c4_a_wrong_checksum_is_a_mismatch(bench: AggregatedBatches) -> None:
    bench.aggregate([0, 1, 3])
    wrong = replace(bench.request(Interval(TIME, 1)), checksum=bytes(32))
    assert bench.refusal(wrong) == "batchMismatch"


def test_d6_a_batch_below_the_watermark_is_expired_unless_it_was_served(store: Datastore) -> None:
    """A new request below the mark is ``batchInvalid``; an existing share is still served."""
    pair = task_pair(settings=TaskSettings(report_expiry_age=PRECISION))
    bench = AggregatedBatches(store, pair, add_task(store, pair.helper, pair))
    bench.aggregate([1], time=TIME - 1)
    served = bench.serve(message := bench.request(Interval(TIME - 1, 1)))
    old = bench.request(Interval(TIME - 2, 1))
    assert bench.refusal(old) == "batchInvalid"
    bench.task = replace(bench.task, expired_before=TIME)
    assert bench.serve(message) == served
