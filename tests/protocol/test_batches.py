"""Queries and batch selectors as bucket ranges, and what is refused."""

from __future__ import annotations

from dataclasses import replace

import pytest

from dapd.errors import Abort
from dapd.messages.collection import AggregateShareReq, BatchSelector, CollectionJobReq, Query
from dapd.messages.common import BatchMode, Extension, Extensions, Interval
from dapd.protocol.batches import (
    BucketRange,
    batch_id_range,
    check_collection_extensions,
    check_share_request_content,
    queried_range,
    selected_range,
    time_bucket,
)
from tests.task_pair import task_pair

TIMED = task_pair().helper
SELECTED = task_pair(batch_mode=BatchMode.LEADER_SELECTED).helper
BATCH_ID = bytes(range(32))


def share_request(query: Interval | None, batch: Interval | bytes) -> AggregateShareReq:
    return AggregateShareReq(CollectionJobReq(Query(query)), BatchSelector(batch), 1, bytes(32))


def refusal(request: AggregateShareReq, expired_before: int = 0) -> str | None:
    task = TIMED if request.collection_job_req.query.batch_interval else SELECTED
    with pytest.raises(Abort) as caught:
        selected_range(task, request, expired_before)
    return caught.value.type


def test_c7_an_interval_is_the_range_of_its_buckets() -> None:
    """The range is half-open, in time precisions."""
    request = CollectionJobReq(Query(Interval(5, 3)))
    assert queried_range(TIMED, request, 0) == BucketRange(time_bucket(5), time_bucket(8))
    assert queried_range(SELECTED, CollectionJobReq(Query(None)), 0) is None


@pytest.mark.parametrize(
    "interval", [Interval(5, 0), Interval(2**64 - 1, 1), Interval(1, 2**64 - 1)]
)
def test_c7_an_interval_must_last_and_must_not_overflow(interval: Interval) -> None:
    """Duration 0 and an end beyond the largest time are batchInvalid."""
    with pytest.raises(Abort) as caught:
        queried_range(TIMED, CollectionJobReq(Query(interval)), 0)
    assert caught.value.type == "batchInvalid"
    assert refusal(share_request(interval, interval)) == "batchInvalid"


def test_c7_the_largest_interval_is_valid() -> None:
    """An interval may end at the largest time."""
    found = queried_range(TIMED, CollectionJobReq(Query(Interval(0, 2**64 - 1))), 0)
    assert found == BucketRange(bytes(8), b"\xff" * 8)


def test_c1_a_batch_id_is_a_range_of_one_bucket() -> None:
    """The range contains no other id of 32 bytes."""
    lo, hi = batch_id_range(BATCH_ID)
    following = BATCH_ID[:-1] + bytes([BATCH_ID[-1] + 1])
    assert lo <= BATCH_ID < hi <= following


def test_d6_what_begins_below_the_mark_is_expired() -> None:
    """An interval that begins at the mark is not expired."""
    assert refusal(share_request(Interval(5, 3), Interval(5, 3)), 6) == "batchInvalid"
    selected_range(TIMED, share_request(Interval(5, 3), Interval(5, 3)), 5)


def test_c4_a_selector_must_lie_within_its_query() -> None:
    """The Helper sums the selector and closes the whole query."""
    batch = selected_range(TIMED, share_request(Interval(5, 3), Interval(6, 1)), 0)
    assert batch.selected == BucketRange(time_bucket(6), time_bucket(7))
    assert batch.closed == BucketRange(time_bucket(5), time_bucket(8))
    for outside in (Interval(4, 2), Interval(7, 2), Interval(4, 9), Interval(9, 1)):
        assert refusal(share_request(Interval(5, 3), outside)) == "batchInvalid"


def test_c4_the_wrong_batch_mode_is_an_invalid_message() -> None:
    """Query and selector are checked for it before anything else."""
    for query, batch in ((Interval(1, 0), BATCH_ID), (None, Interval(1, 0))):
        for task in (TIMED, SELECTED):
            with pytest.raises(Abort) as caught:
                selected_range(task, share_request(query, batch), 0)
            assert caught.value.type == "invalidMessage"
    found = selected_range(SELECTED, share_request(None, BATCH_ID), 0)
    assert found.selected == found.closed == batch_id_range(BATCH_ID)


def test_b4_an_aggregation_parameter_has_another_error_on_each_side() -> None:
    """invalidAggregationParameter from the Leader, invalidMessage from the Helper."""
    request = CollectionJobReq(Query(Interval(5, 3)), agg_param=b"x")
    with pytest.raises(Abort) as caught:
        queried_range(TIMED, request, 0)
    assert caught.value.type == "invalidAggregationParameter"
    extended = replace(request, extensions=(Extension(1, b""),))
    with pytest.raises(Abort) as caught:
        check_share_request_content(extended)
    assert caught.value.type == "invalidMessage"


@pytest.mark.parametrize(
    ("extensions", "error"),
    [
        ((Extension(1, b""),), "unsupportedExtension"),
        ((Extension(1, b""), Extension(2, b"")), "unsupportedExtension"),
        ((Extension(2, b""), Extension(1, b"")), "invalidExtension"),
        ((Extension(2, b""), Extension(2, b"")), "invalidExtension"),
    ],
)
def test_b3_collection_job_extensions(extensions: Extensions, error: str) -> None:
    """No extension is supported; wrong order and repetition have an error of their own."""
    with pytest.raises(Abort) as caught:
        check_collection_extensions(extensions)
    assert caught.value.type == error
    check_collection_extensions(())
