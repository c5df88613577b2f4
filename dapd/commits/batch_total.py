"""The total of a batch: the merge of its contributions (section "Obtaining Aggregate Shares").

This only reads, so it may run in a reader, beside the writer. ``extent`` then tells the committing
transaction whether contributions were added or merged since. Memory does not grow with the number
of jobs.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from dapd.crypto import Sealer, batch_share_aad
from dapd.datastore import batches
from dapd.datastore.batches import Contribution
from dapd.datastore.sqlite import Tx
from dapd.messages.common import CHECKSUM_SIZE
from dapd.protocol.batches import BucketRange
from dapd.protocol.collect import Total
from dapd.protocol.task import Task
from dapd.vdaf import merge


@dataclass(frozen=True, slots=True)
class BatchTotal(Total):
    """The total of a batch; ``extent`` changes whenever its contributions do."""

    extent: tuple[int, int]


def batch_total(tx: Tx, task: Task, sealer: Sealer, batch: BucketRange) -> BatchTotal:
    """Merge a batch's contributions. Raises ``ValueError`` if a share does not open."""
    total = nothing(task)
    for page in batches.contributions_in_pages(tx, task.task_pk, batch.lo, batch.hi):
        total = added(task, sealer, total, page)
    return BatchTotal(
        total.n,
        total.checksum,
        total.time_min,
        total.time_max,
        total.share,
        batches.extent(tx, task.task_pk, batch.lo, batch.hi),
    )


def nothing(task: Task) -> Total:
    """Return the total of a batch without contributions."""
    return Total(0, bytes(CHECKSUM_SIZE), 0, 0, merge(task.vdaf, []))


def added(task: Task, sealer: Sealer, total: Total, parts: Sequence[Contribution]) -> Total:
    """Add contributions to ``total``. Raises ``ValueError`` if a share does not open.

    Only one contribution's share is in the clear at a time.
    """

    def shares() -> Iterator[bytes]:
        yield total.share
        for part in parts:
            aad = batch_share_aad(task.task_id, part.job_id, part.bucket)
            yield sealer.open(aad, part.share)

    checksum = int.from_bytes(total.checksum, "big")
    for part in parts:
        checksum ^= int.from_bytes(part.checksum, "big")
    spans = [(part.time_min, part.time_max) for part in parts]
    spans += [(total.time_min, total.time_max)] if total.n else []
    return Total(
        total.n + sum(part.n for part in parts),
        checksum.to_bytes(CHECKSUM_SIZE, "big"),
        min((start for start, _ in spans), default=0),
        max((end for _, end in spans), default=0),
        merge(task.vdaf, shares()),
    )
