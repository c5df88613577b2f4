"""The buckets of queries and batch selectors, and the checks that need no database.

Sections "Batch Modes", "Collection Job Initialization", "Collection Job Extensions", "Obtaining
Aggregate Shares". The transactions that call these checks make those that need the database
(overlap, batch size, mismatch) in between, in the order of rule C4.

A bucket is 8 big-endian bytes of time or a 32-byte batch id; a batch is a half-open range of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple, assert_never

from dapd.errors import Abort
from dapd.messages.collection import AggregateShareReq, CollectionJobReq
from dapd.messages.common import BatchMode, Extension, Interval
from dapd.protocol.states import RangeState
from dapd.protocol.task import Task

_TIME_SIZE = 8
_LARGEST_TIME = 2**64 - 1
_GIVEN_UP = "part of the batch is closed for a query that was given up; repeat that query"
_QUARANTINED = "closed when this Aggregator was restored from a backup; its operator can reopen it"


class BucketRange(NamedTuple):
    """The buckets from ``lo`` up to, not including, ``hi``."""

    lo: bytes
    hi: bytes


class ShareRequestBatch(NamedTuple):
    """The buckets that an ``AggregateShareReq`` sums (``selected``) and closes (``closed``)."""

    selected: BucketRange
    closed: BucketRange


@dataclass(frozen=True, slots=True)
class OpenBatch:
    """A leader-selected batch that no collection job has taken, with its numbers of reports.

    A ``suspect`` one takes no more: the Helper may have aggregated reports that this side has not.
    """

    batch_id: bytes
    aggregated: int
    in_flight: int
    suspect: bool = False

    @property
    def unfinished(self) -> bool:
        """Whether an unfinished job may still add reports."""
        return self.in_flight > 0

    def room(self, target: int) -> int:
        """Return how many reports may still be assigned; rejected ones don't count (rule C6)."""
        return 0 if self.suspect else max(0, target - self.aggregated - self.in_flight)

    def full_at(self, target: int, minimum: int) -> int:
        """Return how many aggregated reports make the batch full."""
        return minimum if self.suspect else target


def time_bucket(time: int) -> bytes:
    """Return the bucket of a report's time, in time precisions."""
    return time.to_bytes(8, "big")


def batch_id_range(batch_id: bytes) -> BucketRange:
    """Return the range of one leader-selected batch: from its id to the next possible one (C1)."""
    return BucketRange(batch_id, batch_id + b"\0")


def bucket_range(bucket: bytes) -> BucketRange:
    """Return the range of one bucket: a time precision, or a leader-selected batch."""
    if len(bucket) == _TIME_SIZE:
        return BucketRange(bucket, time_bucket(int.from_bytes(bucket, "big") + 1))
    return batch_id_range(bucket)


def gaps(whole: BucketRange, ranges: Sequence[BucketRange]) -> list[BucketRange]:
    """Return the parts of ``whole`` that no range covers; ``ranges`` are sorted and disjoint."""
    found = []
    lo = whole.lo
    for taken in ranges:
        if taken.lo > lo:
            found.append(BucketRange(lo, min(taken.lo, whole.hi)))
        lo = max(lo, taken.hi)
        if lo >= whole.hi:
            break
    if lo < whole.hi:
        found.append(BucketRange(lo, whole.hi))
    return found


def merged(ranges: Sequence[BucketRange]) -> list[BucketRange]:
    """Join adjacent ranges; ``ranges`` are sorted and disjoint."""
    found: list[BucketRange] = []
    for each in ranges:
        adjoins = found and found[-1].hi == each.lo
        found.append(BucketRange(found.pop().lo, each.hi) if adjoins else each)
    return found


def interval_range(interval: Interval, expired_before: int) -> BucketRange:
    """Return the buckets of a batch interval (C7, D6). Raises ``Abort`` with ``batchInvalid``."""
    if interval.duration == 0:
        raise Abort("batchInvalid", "the batch interval has a duration of 0")
    if interval.end > _LARGEST_TIME:
        raise Abort("batchInvalid", "the batch interval ends after the largest possible time")
    if interval.start < expired_before:  # D6
        raise Abort("batchInvalid", "expired")
    return BucketRange(time_bucket(interval.start), time_bucket(interval.end))


def queried_range(task: Task, request: CollectionJobReq, expired_before: int) -> BucketRange | None:
    """Check a ``CollectionJobReq`` as the Leader does before it looks for overlap (rule C4).

    Return the buckets, or ``None`` for a leader-selected query, whose batch is not chosen yet.
    Raises ``Abort``.
    """
    _check_mode(task, request.query.batch_mode, "query")
    if request.agg_param:  # B4
        raise Abort("invalidAggregationParameter", "agg_param must be empty for Prio3")
    interval = request.query.batch_interval
    return None if interval is None else interval_range(interval, expired_before)


def selected_range(
    task: Task, request: AggregateShareReq, expired_before: int
) -> ShareRequestBatch:
    """Check an ``AggregateShareReq`` as the Helper does before it looks for overlap (rule C4).

    Raises ``Abort``.
    """
    query, batch = request.collection_job_req.query, request.batch_selector.batch
    _check_mode(task, query.batch_mode, "query")
    _check_mode(task, request.batch_selector.batch_mode, "batch selector")
    if not isinstance(batch, Interval) or query.batch_interval is None:
        assert isinstance(batch, bytes)
        return ShareRequestBatch(batch_id_range(batch), batch_id_range(batch))
    closed = interval_range(query.batch_interval, expired_before)
    selected = interval_range(batch, expired_before)
    if selected.lo < closed.lo or selected.hi > closed.hi:
        raise Abort("batchInvalid", "the batch selector is not within the query")
    return ShareRequestBatch(selected, closed)


def overlap_error(state: RangeState | None) -> tuple[str, str] | None:
    """Return (error, detail) for a batch that overlaps a range of this state, if any.

    A range closed by a restore is not a ``batchOverlap``: a Leader would take that to mean that the
    batch is collected for good.
    """
    match state:
        case None:
            return None
        case RangeState.QUARANTINED:
            return "batchInvalid", _QUARANTINED
        case RangeState.EXPIRED:
            return "batchInvalid", "expired"
        case RangeState.GIVEN_UP:
            return "batchOverlap", _GIVEN_UP
        case RangeState.CLOSED | RangeState.COLLECTED:
            return "batchOverlap", "part of the batch is collected or being collected"
        case _:
            assert_never(state)


def check_share_request_content(request: CollectionJobReq) -> None:
    """Make the Helper's checks between batch size and batch mismatch (C4). Raises ``Abort``."""
    if request.agg_param:  # B4
        raise Abort("invalidMessage", "agg_param must be empty, as in the batch's jobs")
    check_collection_extensions(request.extensions)


def check_collection_extensions(extensions: Sequence[Extension]) -> None:
    """Refuse all extensions: dapd supports none (B3, "Collection Job Extensions").

    Raises ``Abort``.
    """
    types = [extension.type for extension in extensions]
    if any(later <= earlier for earlier, later in pairwise(types)):
        raise Abort("invalidExtension", "the extensions are not in strictly increasing order")
    if types:
        raise Abort("unsupportedExtension", f"collection job extension {types[0]} is not supported")


def _check_mode(task: Task, mode: BatchMode, what: str) -> None:
    configured = task.configuration.batch_mode
    if mode is not configured:
        modes = f"{mode.name.lower()}, but the task's is {configured.name.lower()}"
        raise Abort("invalidMessage", f"the {what}'s batch mode is {modes}")
