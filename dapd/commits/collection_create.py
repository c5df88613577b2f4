"""The transaction that makes a collection job, or finds the one an identical request made.

Section "Collection Job Initialization"; rules A1, A8, C4, D6.
"""

from __future__ import annotations

from dapd.datastore import batches, collections, marks
from dapd.datastore.collections import CollectionJob
from dapd.datastore.engines import Tx
from dapd.errors import Abort, DecodeError
from dapd.messages.collection import CollectionJobReq
from dapd.protocol.batches import check_collection_extensions, obstacle, queried_range
from dapd.protocol.task import Instant, Task


def collection_create(
    tx: Tx, task: Task, body: bytes, job_id: bytes, at: Instant, keep_ms: int
) -> CollectionJob:
    """The job of this request, new or not.

    ``keep_ms`` is how long a leader-selected job keeps its identity after it was served. Raises
    ``Abort`` with the first error in the draft's order; then nothing is stored.
    """
    mark = task.mark_of(marks.expired_before(tx, task, at), at)
    if job := collections.identical(tx, task.task_pk, body, mark):  # A1: before any check
        if task.by_time or job.served_at is None or at.now < job.served_at + keep_ms:
            return job
        collections.end_identity(tx, job.pk)  # A8
    try:
        request = CollectionJobReq.decode(body)
    except DecodeError as error:
        raise Abort("invalidMessage", str(error)) from error
    batch = queried_range(task, request, mark.before)
    if batch and (refusal := obstacle(batches.overlapping(tx, task.task_pk, *batch))):
        raise Abort(*refusal)
    check_collection_extensions(request.extensions)
    # A8: all valid leader-selected requests of a task are alike, so their identity makes them one.
    collections.end_expired_identity(tx, task.task_pk, body, mark)
    return collections.insert(tx, task.task_pk, job_id, batch or (b"", b""), body, at)
