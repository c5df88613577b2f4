"""The moves of a waiting collection, as a table; and the encryption of an aggregate share."""

from __future__ import annotations

import pytest

from dapd.messages.collection import AggregateShareAad, CollectionJobReq, Query
from dapd.messages.common import Interval
from dapd.protocol.batches import BucketRange, OpenBatch, batch_id_range, time_bucket
from dapd.protocol.collect import (
    Backlog,
    FixCut,
    Freeze,
    Move,
    Wait,
    encrypt_aggregate_share,
    interval_move,
    next_batch_move,
)
from tests.task_pair import task_pair

BATCH = BucketRange(time_bucket(1), time_bucket(2))
NONE = Backlog(0, 0, 0, 0)
A, B = b"a" * 32, b"b" * 32


@pytest.mark.parametrize(
    ("aggregated", "backlog", "cut", "move"),
    [
        (9, NONE, None, Wait()),
        (4, Backlog(3, 2, 5, 8), None, Wait()),
        (4, Backlog(4, 2, 6, 8), None, FixCut(8)),
        (10, NONE, None, FixCut(0)),
        (10, NONE, 0, Freeze(BATCH)),
        (10, Backlog(7, 0, 0, 9), 8, Freeze(BATCH)),
        (10, Backlog(7, 0, 1, 9), 8, Wait()),
        (10, Backlog(7, 1, 0, 9), 8, Wait()),
        (9, Backlog(7, 0, 0, 9), 8, FixCut(9)),
        (9, NONE, 8, Wait()),
    ],
)
def test_c3_the_moves_of_an_interval(
    aggregated: int, backlog: Backlog, cut: int | None, move: Move
) -> None:
    """The minimum is 10. There are too few reports, or enough, or all up to the cut are decided."""
    assert interval_move(BATCH, aggregated, backlog, cut, 10) == move


@pytest.mark.parametrize(
    ("batches", "backlog", "cut", "move"),
    [
        ([], NONE, None, Wait()),
        ([OpenBatch(A, 9, False)], NONE, None, Wait()),
        ([OpenBatch(A, 5, False), OpenBatch(B, 5, False)], NONE, None, Wait()),
        ([OpenBatch(A, 9, False)], Backlog(1, 0, 1, 4), None, FixCut(4)),
        ([OpenBatch(A, 10, False), OpenBatch(B, 20, False)], NONE, None, Freeze(batch_id_range(B))),
        ([OpenBatch(A, 20, True), OpenBatch(B, 20, False)], NONE, None, Freeze(batch_id_range(B))),
        # A suspect one never fills.
        ([OpenBatch(A, 10, 0, True), OpenBatch(B, 20, 0)], NONE, None, Freeze(batch_id_range(A))),
        ([OpenBatch(A, 9, 0, True), OpenBatch(B, 20, 0)], NONE, None, Freeze(batch_id_range(B))),
        ([OpenBatch(A, 10, False)], Backlog(1, 0, 1, 4), 4, Wait()),
        ([OpenBatch(A, 10, False)], Backlog(1, 0, 0, 5), 4, Freeze(batch_id_range(A))),
        (
            [OpenBatch(A, 10, True), OpenBatch(B, 10, False)],
            Backlog(1, 0, 0, 5),
            4,
            Freeze(batch_id_range(B)),
        ),
        ([OpenBatch(A, 9, False)], Backlog(1, 0, 0, 5), 4, FixCut(5)),
        ([OpenBatch(A, 9, False)], NONE, 4, Wait()),
    ],
)
def test_c6_the_moves_of_the_next_batch(
    batches: list[OpenBatch], backlog: Backlog, cut: int | None, move: Move
) -> None:
    """The minimum is 10 and the target 20."""
    assert next_batch_move(batches, backlog, cut, 10, 20) == move


def test_an_aggregate_share_is_bound_to_task_and_request() -> None:
    """Section "Aggregate Share Encryption": only the same AggregateShareAad and role open it."""
    pair = task_pair()
    request = CollectionJobReq(Query(Interval(1, 2)))
    sealed = encrypt_aggregate_share(pair.helper, request, b"share")
    aad = AggregateShareAad(pair.helper.task_id, pair.configuration, request).encode()
    key = pair.collector_key
    assert sealed.config_id == key.config[0]
    info = b"dap-18 aggregate share\x03\x00"
    assert key.open(info, aad, sealed.enc, sealed.payload) == b"share"
    with pytest.raises(ValueError, match="open"):
        key.open(b"dap-18 aggregate share\x02\x00", aad, sealed.enc, sealed.payload)
