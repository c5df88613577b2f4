"""How a Helper judges the requests for an aggregation job, before anything is stored (rule A3).

Sections "Helper Initialization", "Helper Continuation", "Recovering from Aggregation Step Skew",
and "Leader-selected Batch Mode" for its extension. Left out: the reports one by one, which the Rust
extension judges, and what the database decides, replay and collected batches
(``dapd.commits.helper_jobs``).
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import NoReturn

from dapd.errors import Abort, DecodeError
from dapd.messages.aggregation import (
    LEADER_SELECTED_BATCH_ID,
    AggregationJobContinueHead,
    AggregationJobInitHead,
)
from dapd.messages.common import BATCH_ID_SIZE, Extensions
from dapd.protocol.task import Task
from dapd.reports import HelperJob


@dataclass(frozen=True, slots=True)
class InitRequest:
    """A valid ``AggregationJobInitReq``; ``batch_id`` is ``None`` in the time-interval mode."""

    rows: HelperJob
    batch_id: bytes | None


def judge_init(task: Task, body: bytes) -> InitRequest:
    """The whole-request checks of section "Helper Initialization".

    Raises ``Abort`` with the error that the draft names. Of a request with several faults the
    head's are told first; the draft lists conditions, not their order.
    """
    try:
        head, offset = AggregationJobInitHead.decode(body)
    except DecodeError as error:
        raise Abort("invalidMessage", f"AggregationJobInitReq: {error}") from error
    if head.verification_key_id != task.verification_key_id:  # B4
        raise Abort(
            "invalidMessage",
            f"verification_key_id is {head.verification_key_id}, "
            f"but this task has the key {task.verification_key_id}",
        )
    batch_id = _batch_id(task, head.extensions)
    if head.agg_param:  # B4: Prio3 has none
        raise Abort("invalidAggregationParameter", "agg_param must be empty for this task's VDAF")
    try:
        rows = HelperJob(body, offset)  # A3: every VerifyInit, distinct ids, no empty list
    except DecodeError as error:
        raise Abort("invalidMessage", f"AggregationJobInitReq: {error}") from error
    return InitRequest(rows, batch_id)


def config_ids_of(body: bytes) -> bytes:
    """The HPKE config ids to which the reports of a stored ``AggregationJobInitReq`` are sealed."""
    _, offset = AggregationJobInitHead.decode(body)
    return HelperJob(body, offset).config_ids


def unknown_job() -> Abort:
    """What a request for a job that is unknown or deleted ends with (rule A6)."""
    return Abort(
        "unrecognizedAggregationJob",
        "no aggregation job with this ID is known here; it may have been deleted",
        status=404,
    )


def judge_continue(body: bytes) -> NoReturn:
    """Section "Helper Continuation" on a job that exists; its VDAF is done after one round (A11).

    Raises ``Abort``: no step but 0 exists, so even a valid request is out of step.
    """
    try:
        head, offset = AggregationJobContinueHead.decode(body)
    except DecodeError as error:
        raise Abort("invalidMessage", f"AggregationJobContinueReq: {error}") from error
    if head.step == 0:
        raise Abort("invalidMessage", "step 0 is the job's initialization, not a continuation")
    if len(body) > offset:
        raise Abort(
            "invalidMessage",
            "verify_continues must be empty: no report of this job has a state to continue",
        )
    raise Abort("stepMismatch", f"this job is finished at step 0 and has no step {head.step}")


def check_step(text: str | None) -> None:
    """The ``step`` of a GET. Raises ``Abort``: 0 is the only one that jobs here have (rule A4)."""
    if text is None or not (text.isascii() and text.isdigit()):
        raise Abort("invalidMessage", "the query parameter `step` must be a number")
    if text.strip("0"):
        raise Abort("stepMismatch", f"this job is at step 0, not {text[:8]}")


def verifies_at_once(mode: str, ahead: float, own: float, limit: float) -> bool:
    """Whether a new job is handled synchronously.

    ``mode`` is the task's or the server's, ``ahead`` the seconds of work waiting and running,
    ``own`` the job's, both spread over the cores, ``limit`` the most that ``auto`` makes wait.
    """
    match mode:
        case "sync":
            return True
        case "async":
            return False
        case "auto":
            return ahead + own <= limit
        case _:
            raise ValueError(f"{mode!r} is no helper mode")


def _batch_id(task: Task, extensions: Extensions) -> bytes | None:
    """The batch that the extensions name (rule B3); an unknown type is told before the order."""
    # In the time-interval mode a batch ID has no meaning. Ignoring it would hide that the Leader
    # holds the task for one of another mode, and extensions are mandatory to support.
    known = () if task.by_time else (LEADER_SELECTED_BATCH_ID,)
    types = [extension.type for extension in extensions]
    for unknown in (each for each in types if each not in known):
        raise Abort(
            "unsupportedExtension", f"aggregation job extension {unknown} is not supported here"
        )
    if any(left >= right for left, right in pairwise(types)):
        raise Abort("invalidMessage", "extensions must be in strictly increasing order")
    if task.by_time:
        return None
    batch_ids = [extension.data for extension in extensions]
    if not batch_ids or len(batch_ids[0]) != BATCH_ID_SIZE:
        raise Abort(
            "invalidMessage",
            f"this batch mode needs leader_selected_batch_id with {BATCH_ID_SIZE} bytes",
        )
    return batch_ids[0]
