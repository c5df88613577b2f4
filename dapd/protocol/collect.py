"""The moves of a waiting collection, and the encryption of an aggregate share.

Sections "Collection Job Initialization", "Leader-selected Batch Mode", "Aggregate Share
Encryption"; rules C3, C6, D4. Pure functions: the database's numbers in, the next move out.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from dapd.crypto import hpke_seal
from dapd.messages.collection import (
    AggregateShareReq,
    BatchSelector,
    CollectionJobReq,
    CollectionJobResp,
)
from dapd.messages.common import HpkeCiphertext, Interval, Role
from dapd.protocol.batches import BucketRange, OpenBatch, batch_id_range
from dapd.protocol.task import Task

_INFO = b"dap-18 aggregate share"


@dataclass(frozen=True, slots=True)
class Backlog:
    """Counts of the accepted but undecided reports of a batch, or of a whole task.

    ``undecided`` counts those up to the cut, waiting or assigned. ``newest_seq`` is the newest
    chunk's position in the order of acceptance.
    """

    waiting: int
    assigned: int
    undecided: int
    newest_seq: int


@dataclass(frozen=True, slots=True)
class Total:
    """The sum of contributions; ``share`` is an encoded aggregate share, in the clear.

    Times are inclusive and count time precisions; they are 0 if ``n`` is.
    """

    n: int
    checksum: bytes
    time_min: int
    time_max: int
    share: bytes = field(repr=False)


@dataclass(frozen=True, slots=True)
class Wait:
    """Wait for uploads, or for jobs to finish."""


@dataclass(frozen=True, slots=True)
class FixCut:
    """Fix the cut at ``seq``, or move it there."""

    seq: int


@dataclass(frozen=True, slots=True)
class Freeze:
    """Close the batch, which is complete, and ask the Helper for its share."""

    batch: BucketRange


Move = Wait | FixCut | Freeze


def interval_move(
    batch: BucketRange, aggregated: int, backlog: Backlog, cut: int | None, minimum: int
) -> Move:
    """Return the next move of a collection of a batch interval (rule C3)."""
    if cut is None:
        enough = aggregated + backlog.waiting + backlog.assigned >= minimum
        return FixCut(backlog.newest_seq) if enough else Wait()
    if backlog.undecided or backlog.assigned:  # C2: no job may have a chunk, also behind the cut
        return Wait()
    if aggregated >= minimum:
        return Freeze(batch)
    return _later_cut(backlog, cut)


def next_batch_move(
    batches: Sequence[OpenBatch], backlog: Backlog, cut: int | None, minimum: int, target: int
) -> Move:
    """Return the next move of a collection of the next leader-selected batch (rule C6).

    ``batches`` are ordered from old to new; ``backlog`` is that of the whole task.
    """
    if full := _oldest([b for b in batches if b.aggregated >= b.full_at(target, minimum)]):
        return Freeze(batch_id_range(full.batch_id))
    if cut is None:
        fullest = max((batch.aggregated for batch in batches), default=0)
        enough = fullest + backlog.waiting + backlog.assigned >= minimum
        return FixCut(backlog.newest_seq) if enough else Wait()
    if backlog.undecided:
        return Wait()
    if ready := _oldest([b for b in batches if b.aggregated >= minimum]):
        return Freeze(batch_id_range(ready.batch_id))
    return _later_cut(backlog, cut)


def aggregate_share_req(request: bytes, batch: BucketRange, total: Total) -> AggregateShareReq:
    """Build the request for a batch's share; ``request`` is the stored ``CollectionJobReq``."""
    asked = CollectionJobReq.decode(request)
    selector = BatchSelector(asked.query.batch_interval or batch.lo)
    return AggregateShareReq(asked, selector, total.n, total.checksum)


def collection_job_resp(
    task: Task, request: bytes, total: Total, helper_share: HpkeCiphertext
) -> CollectionJobResp:
    """Build the result for the Collector, with the Leader's share of ``total`` sealed to it."""
    return CollectionJobResp(
        total.n,
        Interval(total.time_min, total.time_max + 1 - total.time_min),  # C7
        encrypt_aggregate_share(task, CollectionJobReq.decode(request), total.share),
        helper_share,
    )


def encrypt_aggregate_share(task: Task, request: CollectionJobReq, share: bytes) -> HpkeCiphertext:
    """Seal this Aggregator's share to the Collector (section "Aggregate Share Encryption")."""
    enc, payload = hpke_seal(
        task.collector_hpke_config.as_tuple,
        _INFO + bytes([task.role, Role.COLLECTOR]),
        task.task_id + task.configuration_bytes + request.encode(),  # AggregateShareAad
        share,
    )
    return HpkeCiphertext(task.collector_hpke_config.id, enc, payload)


def _oldest(batches: Sequence[OpenBatch]) -> OpenBatch | None:
    return next((batch for batch in batches if not batch.unfinished), None)


def _later_cut(backlog: Backlog, cut: int) -> Move:
    """Move the cut to the newest chunk: all reports before the old one are decided, but too few."""
    return FixCut(backlog.newest_seq) if backlog.newest_seq > cut else Wait()
