"""The transaction that deletes a collection job (section "Collection Job Deletion"; rule A6)."""

from __future__ import annotations

from dapd.datastore import batches, collections
from dapd.datastore.engines import Tx
from dapd.protocol.task import Instant, Task


def collection_delete(tx: Tx, task: Task, job_id: bytes, at: Instant) -> bool:
    """Take the job away, also from a running step; whether there ever was one.

    Its batch stays collected, and becomes so if the Helper may have been asked for its share. A
    leader-selected batch is bound to its job for ever once it was frozen (rule A8).
    """
    job = collections.by_id(tx, task.task_pk, job_id, task.mark_at(at))
    if job is None:
        return False
    if job.state in {"frozen", "polling"}:
        if job.sends or not task.by_time:
            batches.settle(tx, job.pk)
        else:
            batches.reopen(tx, job.pk)
    collections.delete(tx, job.pk)
    return True
