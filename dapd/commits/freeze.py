"""The transaction that closes a batch and stores what will be sent for it (rule C2).

The sum was made outside of it; here, with the job claimed, nothing may have changed since.
"""

from __future__ import annotations

from dapd.commits.cut import obstacle_to, planned
from dapd.datastore import batches, collections, outstanding
from dapd.datastore.collections import FrozenBatch
from dapd.datastore.engines import Tx
from dapd.datastore.leases import Lease
from dapd.protocol.batches import BucketRange
from dapd.protocol.collect import Freeze
from dapd.protocol.task import Instant, Task


class BatchChangedError(Exception):
    """The batch is not what it was when it was summed: look at the job again."""


def freeze(
    tx: Tx, lease: Lease, task: Task, frozen: FrozenBatch, extent: tuple[int, int], at: Instant
) -> bool:
    """Close the batch; ``extent`` is that of its sum. Whether the lease still held.

    Raises ``BatchChangedError``, which undoes everything.
    """
    if not collections.freeze(tx, lease, frozen):  # D1
        return False
    batch = BucketRange(frozen.lo, frozen.hi)
    job = collections.by_pk(tx, lease.pk)
    if (
        planned(tx, task, job, job.cut, at) != Freeze(batch)
        or batches.extent(tx, task.task_pk, *batch) != extent
        or obstacle_to(tx, task, job, at)  # D6: what was summed may have been deleted in part
    ):
        raise BatchChangedError
    if not task.by_time and not outstanding.bind(tx, task.task_pk, batch.lo, job.pk):  # A8
        raise BatchChangedError
    batches.close(tx, task.task_pk, *batch, state="closed", collection_pk=job.pk)
    collections.touch(tx, task.task_pk, at.now)  # C5: those that overlap fail now
    return True
