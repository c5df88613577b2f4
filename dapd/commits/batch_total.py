"""What a batch holds in sum: the merge of its contributions (section "Obtaining Aggregate Shares").

Changes nothing, so it may run in a reader, beside the writer; ``extent`` then tells the committing
transaction whether something was added since. Memory does not grow with the number of jobs.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from dapd.crypto import Sealer, batch_share_aad
from dapd.datastore import batches
from dapd.datastore.engines import Tx
from dapd.messages.common import CHECKSUM_SIZE
from dapd.protocol.batches import BucketRange
from dapd.protocol.task import Task
from dapd.vdaf import merge


@dataclass(frozen=True, slots=True)
class BatchTotal:
    """``share`` is an encoded aggregate share, in the clear; times are inclusive, 0 if ``n`` is."""

    n: int
    checksum: bytes
    time_min: int
    time_max: int
    share: bytes = field(repr=False)
    extent: tuple[int, int]


def batch_total(tx: Tx, task: Task, sealer: Sealer, batch: BucketRange) -> BatchTotal:
    """Counts summed, checksums XORed, shares merged. ``ValueError`` if a share does not open."""
    n, checksum, times = 0, 0, list[int]()
    share = merge(task.vdaf, [])
    for page in batches.contributions_in_pages(tx, task.task_pk, batch.lo, batch.hi):
        shares = [share]
        for part in page:
            aad = batch_share_aad(task.task_id, part.job_id, part.bucket)
            shares.append(sealer.open(aad, part.share))
            n += part.n
            checksum ^= int.from_bytes(part.checksum, "big")
        share = merge(task.vdaf, shares)
        spans = [time for part in page for time in (part.time_min, part.time_max)]
        times = [min(*times, *spans), max(*times, *spans)]
    return BatchTotal(
        n=n,
        checksum=checksum.to_bytes(CHECKSUM_SIZE, "big"),
        time_min=times[0] if times else 0,
        time_max=times[1] if times else 0,
        share=share,
        extent=batches.extent(tx, task.task_pk, batch.lo, batch.hi),
    )
