"""The Helper's checks of whole requests for aggregation jobs, before it stores anything (A3).

Sections "Helper Initialization", "Helper Continuation", "Recovering from Aggregation Step Skew",
and "Leader-selected Batch Mode" for its extension. The Rust extension checks the single reports;
the database decides about replays and collected batches (``dapd.commits.helper_jobs``).
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
    """Check a request as section "Helper Initialization" demands.

    Raises ``Abort`` with the error that the draft names. If a request has several faults, those of
    the head come first; the draft does not order them.
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
    """Return the HPKE config ids that the reports of a stored ``AggregationJobInitReq`` use."""
    _, offset = AggregationJobInitHead.decode(body)
    return HelperJob(body, offset).config_ids


def unknown_job() -> Abort:
    """Return the error for a request about a job that is unknown or deleted (rule A6)."""
    return Abort(
        "unrecognizedAggregationJob",
        "no aggregation job with this ID is known here; it may have been deleted",
        status=404,
    )


def judge_continue(body: bytes) -> NoReturn:
    """Refuse to continue an existing job, as its VDAF has one round (A11, "Helper Continuation").

    Raises ``Abort``: ``invalidMessage`` for a bad request, ``stepMismatch`` for any other.
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
    """Check the ``step`` of a GET. Raises ``Abort`` unless it is 0, the only step (rule A4)."""
    if text is None or not (text.isascii() and text.isdigit()):
        raise Abort("invalidMessage", "the query parameter `step` must be a number")
    if text.strip("0"):
        raise Abort("stepMismatch", f"this job is at step 0, not {text[:8]}")


def verifies_at_once(mode: str, ahead: float, own: float, limit: float) -> bool:
    """Return whether to handle a new job synchronously.

    ``mode`` is the task's or the server's. ``ahead`` is the work waiting and running and ``own``
    the job's, both in seconds spread over the cores; ``auto`` is synchronous up to ``limit``.
    """
    match mode:
        case "sync":
            return True
        case "async":
            return False
        case "auto":
            return ahead + own <= limit
        case _:
            raise ValueError(f"unknown helper mode {mode!r}")


def _batch_id(task: Task, extensions: Extensions) -> bytes | None:
    """Return the batch that the extensions name; an unknown type goes before a wrong order (B3)."""
    # In the time-interval mode a batch ID has no meaning. Ignoring it would hide that the Leader
    # has configured the task with the other mode, and extensions are mandatory to support.
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
