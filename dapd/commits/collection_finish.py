"""The transactions that end a collection job whose AggregateShareReq was answered (C2, D4)."""

from __future__ import annotations

from dapd.datastore import batches, collections
from dapd.datastore.engines import Tx
from dapd.datastore.leases import Lease
from dapd.protocol.task import Task


def collection_finish(tx: Tx, lease: Lease, response: bytes) -> bool:
    """Store the exact CollectionJobResp, once; the batch is collected. Whether the lease held."""
    if not collections.finish(tx, lease, response):  # D1
        return False
    batches.settle(tx, lease.pk)
    return True


def collection_refused(tx: Tx, lease: Lease, task: Task, error: str, detail: str) -> bool:
    """The Helper refused for good: the job fails with its error. Whether the lease held.

    The batch takes reports again, except after ``batchOverlap``: then it is collected over there.
    A leader-selected batch is bound to its job for ever (rule A8): nobody is told to collect it.
    """
    if not collections.fail(tx, lease, error, detail):  # D1
        return False
    if error == "batchOverlap" or not task.by_time:
        batches.settle(tx, lease.pk)
    else:
        batches.reopen(tx, lease.pk)
    return True
