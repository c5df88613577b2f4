"""The transaction in which a Helper serves its aggregate share and closes the batch for good (A4).

Section "Obtaining Aggregate Shares". The checks are in the draft's order (rule C4). A refused
request stores nothing and, above all, marks no batch collected. The share is sealed to the
Collector once and stored, so repeated requests get the same bytes.
"""

from __future__ import annotations

from dataclasses import dataclass

from dapd.commits.batch_total import BatchTotal, batch_total
from dapd.crypto import Sealer
from dapd.datastore import batches, share_jobs, watermarks
from dapd.datastore.share_jobs import StoredShare
from dapd.datastore.sqlite import Tx
from dapd.errors import Abort
from dapd.messages.collection import AggregateShare, AggregateShareReq
from dapd.protocol.batches import (
    check_share_request_content,
    overlap_error,
    selected_range,
)
from dapd.protocol.collect import encrypt_aggregate_share
from dapd.protocol.states import RangeState
from dapd.protocol.task import Instant, Task
from dapd.wording import count


@dataclass(frozen=True, slots=True)
class ShareRequest:
    """A decoded ``AggregateShareReq``, its hash, and the id for its resource."""

    task: Task
    id: bytes
    request_hash: bytes
    message: AggregateShareReq


def serve_aggregate_share(
    tx: Tx, request: ShareRequest, sealer: Sealer, at: Instant
) -> StoredShare:
    """Make the aggregate share, or return the one that an identical request made (rule A1).

    Raises ``Abort`` for the first check that fails; then nothing is stored.
    """
    task, message = request.task, request.message
    mark = task.mark_of(watermarks.expired_before(tx, task, at), at)
    identity = task.task_pk, request.id, request.request_hash
    if not share_jobs.claim(tx, *identity, at.safe, mark.ms):  # D1
        existing = share_jobs.by_identity(tx, task.task_pk, request.request_hash, mark.ms)
        assert existing is not None, "a random id of 16 bytes was given out twice"
        return existing
    batch = selected_range(task, message, mark.before)
    if not task.by_time and _has_expired(tx, task, batch.selected.lo, mark.before):
        raise Abort("batchInvalid", "expired")  # D6
    # The whole query is closed below, so all of it must be free, not only the selector.
    if refusal := overlap_error(batches.overlapping(tx, task.task_pk, *batch.closed)):
        raise Abort(*refusal)
    total = batch_total(tx, task, sealer, batch.selected)
    _check_size(task, total)
    check_share_request_content(message.collection_job_req)
    _check_agreement(message, total)
    batches.close(
        tx, task.task_pk, *batch.closed, state=RangeState.COLLECTED, collection_pk=None
    )  # C1, C4: buckets of the query that are empty too
    sealed = encrypt_aggregate_share(task, message.collection_job_req, total.share)
    response = AggregateShare(sealed).encode()
    share_jobs.answer(tx, task.task_pk, request.id, response)
    return StoredShare(request.id, response)


def _has_expired(tx: Tx, task: Task, batch_id: bytes, expired_before: int) -> bool:
    """Return whether all reports of a leader-selected batch are below the watermark, deleted
    already or not.
    """
    newest = batches.newest(tx, task.task_pk, batch_id)
    return expired_before > 0 if newest is None else newest < expired_before


def _check_size(task: Task, total: BatchTotal) -> None:
    minimum = task.configuration.min_batch_size
    if total.n < minimum:
        raise Abort(
            "invalidBatchSize",
            f"the batch has {count(total.n, 'report')} here, fewer than {minimum}",
        )


def _check_agreement(message: AggregateShareReq, total: BatchTotal) -> None:
    if (message.report_count, message.checksum) != (total.n, total.checksum):
        raise Abort(
            "batchMismatch",
            f"the batch has {count(total.n, 'report')} here, the request says "
            f"{message.report_count}, "
            f"and the checksums {'differ' if message.checksum != total.checksum else 'agree'}",
        )


def delete_aggregate_share(tx: Tx, task_pk: int, share_id: bytes) -> bool:
    """Delete the response and its identity; return whether there was one."""
    return share_jobs.delete(tx, task_pk, share_id)
