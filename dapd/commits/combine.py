"""The values of a batch: its buckets' contributions combined. Section "Batch Buckets".

Shared by the two transactions that take a batch: the Leader's freeze and the Helper's aggregate
share. Runs in the transaction, without a pool (rule E3).
"""

from __future__ import annotations

from dataclasses import dataclass

from dapd.crypto import Sealer, batch_share_aad
from dapd.datastore import batches
from dapd.datastore.engines import Tx
from dapd.messages.common import CHECKSUM_SIZE
from dapd.protocol.batches import BucketRange
from dapd.protocol.task import Task
from dapd.vdaf import merge


@dataclass(frozen=True, slots=True)
class Combined:
    """Report count, checksum, inclusive times (0 of an empty batch), and the plain aggregate share."""

    count: int
    checksum: bytes
    time_min: int
    time_max: int
    share: bytes


def combine(tx: Tx, task: Task, batch: BucketRange, sealer: Sealer) -> Combined:
    """Merge the shares, sum the counts, XOR the checksums; an empty batch is the VDAF's zero.

    Raises ``ValueError`` if a stored share does not open, which is this side's own failure.
    """
    parts = batches.contributions(tx, task.task_pk, batch.lo, batch.hi)
    checksum = 0
    for part in parts:
        checksum ^= int.from_bytes(part.checksum)
    shares = (
        sealer.open(batch_share_aad(task.task_id, part.job_id, part.bucket), part.share)
        for part in parts
    )
    return Combined(
        count=sum(part.n for part in parts),
        checksum=checksum.to_bytes(CHECKSUM_SIZE),
        time_min=min((part.time_min for part in parts), default=0),
        time_max=max((part.time_max for part in parts), default=0),
        share=merge(task.vdaf, shares),
    )
