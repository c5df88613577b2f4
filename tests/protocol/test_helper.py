"""The Helper's checks of whole requests, with real request bodies."""

from __future__ import annotations

import pytest

from dapd.errors import Abort
from dapd.messages.aggregation import (
    AggregationJobContinueHead,
    AggregationJobInitHead,
    leader_selected_batch_id_extension,
)
from dapd.messages.common import BatchMode, Extension
from dapd.protocol.helper import check_step, judge_continue, judge_init, verifies_at_once
from tests.task_pair import TaskPair, leader_job, make_reports, task_pair

BATCH_ID = bytes(range(32))


@pytest.fixture(scope="module")
def by_time() -> TaskPair:
    return task_pair()


@pytest.fixture(scope="module")
def selected() -> TaskPair:
    return task_pair(batch_mode=BatchMode.LEADER_SELECTED)


def body(pair: TaskPair, head: AggregationJobInitHead) -> bytes:
    return leader_job(pair, make_reports(pair, [1, 0]), head=head).body


def refusal(pair: TaskPair, request: bytes) -> str | None:
    with pytest.raises(Abort) as caught:
        judge_init(pair.helper, request)
    return caught.value.type


def test_a_valid_request_gives_its_rows(by_time: TaskPair) -> None:
    """Count and ids of the reports are known before any of them is verified."""
    judged = judge_init(by_time.helper, body(by_time, AggregationJobInitHead()))
    assert judged.rows.count == 2
    assert judged.rows.config_ids == bytes([2])
    assert judged.batch_id is None


def test_b3_the_batch_of_a_leader_selected_job_is_that_of_its_extension(selected: TaskPair) -> None:
    head = AggregationJobInitHead(extensions=(leader_selected_batch_id_extension(BATCH_ID),))
    assert judge_init(selected.helper, body(selected, head)).batch_id == BATCH_ID


@pytest.mark.parametrize(
    ("extensions", "error"),
    [
        ((), "invalidMessage"),
        ((Extension(1, BATCH_ID[:31]),), "invalidMessage"),
        ((Extension(1, BATCH_ID + b"\0"),), "invalidMessage"),
        ((Extension(1, BATCH_ID), Extension(1, BATCH_ID)), "invalidMessage"),
        ((Extension(1, BATCH_ID), Extension(7, b"")), "unsupportedExtension"),
        ((Extension(7, b""), Extension(1, BATCH_ID)), "unsupportedExtension"),
        ((Extension(0, b""), Extension(1, BATCH_ID)), "unsupportedExtension"),
    ],
)
def test_b3_extensions_of_a_leader_selected_job(
    selected: TaskPair, extensions: tuple[Extension, ...], error: str
) -> None:
    """An unknown type goes before a wrong order; a batch id of 32 bytes is required."""
    assert refusal(selected, body(selected, AggregationJobInitHead(extensions=extensions))) == error


def test_b3_a_batch_id_in_the_time_interval_mode_is_unsupported(by_time: TaskPair) -> None:
    """It means that the Leader holds the task for one of another batch mode."""
    head = AggregationJobInitHead(extensions=(leader_selected_batch_id_extension(BATCH_ID),))
    assert refusal(by_time, body(by_time, head)) == "unsupportedExtension"


def test_b4_another_verification_key_id_is_invalid(by_time: TaskPair) -> None:
    head = AggregationJobInitHead(verification_key_id=1)
    assert refusal(by_time, body(by_time, head)) == "invalidMessage"


def test_b4_an_aggregation_parameter_is_invalid(by_time: TaskPair) -> None:
    head = AggregationJobInitHead(agg_param=b"\0")
    assert refusal(by_time, body(by_time, head)) == "invalidAggregationParameter"


def test_a3_no_report_is_no_job(by_time: TaskPair) -> None:
    """Its empty answer would mean "not ready" for ever."""
    assert refusal(by_time, AggregationJobInitHead().encode()) == "invalidMessage"


def test_a3_a_repeated_report_id_spoils_the_request(by_time: TaskPair) -> None:
    request = body(by_time, AggregationJobInitHead())
    rows = request[len(AggregationJobInitHead().encode()) :]
    assert refusal(by_time, request + rows) == "invalidMessage"


def test_a3_a_cut_body_is_malformed(by_time: TaskPair) -> None:
    request = body(by_time, AggregationJobInitHead())
    assert {refusal(by_time, request[:end]) for end in range(len(request) - 40, len(request))} == {
        "invalidMessage"
    }
    assert refusal(by_time, b"\0\0") == "invalidMessage"


@pytest.mark.parametrize("text", [None, "", "one", "-1", "0x0", " 0", "²"])
def test_a4_a_step_must_be_a_number(text: str | None) -> None:
    with pytest.raises(Abort) as caught:
        check_step(text)
    assert caught.value.type == "invalidMessage"


@pytest.mark.parametrize("text", ["1", "65536", "9" * 10_000])
def test_a4_another_step_is_a_mismatch(text: str) -> None:
    with pytest.raises(Abort) as caught:
        check_step(text)
    assert caught.value.type == "stepMismatch"


def test_a4_step_0_is_where_every_job_is() -> None:
    check_step("0")
    check_step("00")


@pytest.mark.parametrize(
    ("request_body", "error"),
    [
        (b"", "invalidMessage"),
        (b"\0", "invalidMessage"),
        (AggregationJobContinueHead(0).encode(), "invalidMessage"),
        (AggregationJobContinueHead(1).encode() + bytes(16 + 4), "invalidMessage"),
        (AggregationJobContinueHead(1).encode() + b"\0", "invalidMessage"),
        (AggregationJobContinueHead(1).encode(), "stepMismatch"),
        (AggregationJobContinueHead(2).encode(), "stepMismatch"),
    ],
)
def test_a11_nothing_is_continued_after_one_round(request_body: bytes, error: str) -> None:
    """Only an otherwise valid request is told that its step is wrong."""
    with pytest.raises(Abort) as caught:
        judge_continue(request_body)
    assert caught.value.type == error


def test_auto_is_sync_while_little_lies_ahead() -> None:
    """The job and all work before it must fit within the limit."""
    assert verifies_at_once("auto", ahead=0.3, own=0.2, limit=0.5)
    assert not verifies_at_once("auto", ahead=0.4, own=0.2, limit=0.5)
    assert verifies_at_once("sync", ahead=9, own=9, limit=0.5)
    assert not verifies_at_once("async", ahead=0, own=0, limit=0.5)
