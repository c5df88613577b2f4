"""The transactions of a Leader's collection job: create, advance, freeze, finish, fail, delete.

Sections "Collection Job Initialization", "Obtaining Aggregate Shares" and "Collection Job
Deletion"; rules A1, A6, A8, C2 to C5, D4, D6.

A job that is *given up* fails with the Helper's error, and keeps the exact request and its share:
the Helper may have answered an earlier send, and then answers these bytes alone. An identical query
makes a job that goes on with them.
"""

from __future__ import annotations

from dataclasses import dataclass

from dapd.crypto import Sealer, collection_share_aad
from dapd.datastore import (
    batches,
    chunks,
    collections,
    counters,
    leases,
    outstanding,
    suspects,
    watermarks,
)
from dapd.datastore.collections import CollectionJob, FrozenBatch
from dapd.datastore.leases import Lease
from dapd.datastore.sqlite import Tx
from dapd.errors import Abort, DecodeError
from dapd.messages.collection import CollectionJobReq
from dapd.protocol.batches import (
    BucketRange,
    bucket_range,
    check_collection_extensions,
    overlap_error,
    queried_range,
    time_bucket,
)
from dapd.protocol.collect import FixCut, Freeze, Move, interval_move, next_batch_move
from dapd.protocol.states import CollectionState, RangeState
from dapd.protocol.task import Instant, Task


@dataclass(frozen=True, slots=True)
class CollectionRequest:
    """An encoded ``CollectionJobReq``, and the id for its resource."""

    task: Task
    id: bytes
    body: bytes


def create_collection(
    tx: Tx, asked: CollectionRequest, sealer: Sealer, at: Instant, keep_ms: int
) -> CollectionJob:
    """Create the job of this request, or return the one that an identical request made (A1).

    If an identical one was given up, the new job goes on with its stored request. ``keep_ms`` is
    how long a leader-selected job keeps its identity after it was served. Raises ``Abort`` with the
    first error in the draft's order; then nothing is stored.
    """
    task, body = asked.task, asked.body
    mark = task.mark_of(watermarks.expired_before(tx, task, at), at)
    if job := collections.identical(tx, task.task_pk, body, mark):  # A1: before any check
        if task.by_time or job.served_at is None or at.now < job.served_at + keep_ms:
            return job
        collections.end_identity(tx, job.pk)  # A8
    if given_up := collections.given_up(tx, task.task_pk, body, mark):
        collections.end_expired_identity(tx, task.task_pk, body, mark)
        return _go_on(tx, asked, given_up, sealer, at)
    try:
        request = CollectionJobReq.decode(body)
    except DecodeError as error:
        raise Abort("invalidMessage", str(error)) from error
    batch = queried_range(task, request, mark.before)
    if batch and (refusal := overlap_error(batches.overlapping(tx, task.task_pk, *batch))):
        raise Abort(*refusal)
    check_collection_extensions(request.extensions)
    # A8: all valid leader-selected requests of a task are identical, so they share one job.
    collections.end_expired_identity(tx, task.task_pk, body, mark)
    return collections.insert(tx, task.task_pk, asked.id, batch or (b"", b""), body, at)


def _go_on(
    tx: Tx, asked: CollectionRequest, given_up: CollectionJob, sealer: Sealer, at: Instant
) -> CollectionJob:
    """Hand the request, the share and the batch of a job that was given up over to a new one."""
    task_id = asked.task.task_id
    assert given_up.leader_share is not None
    share = sealer.open(collection_share_aad(task_id, given_up.id), given_up.leader_share)
    sealed = sealer.seal(collection_share_aad(task_id, asked.id), share)
    job = collections.insert_frozen(tx, given_up, asked.id, sealed, at)
    collections.forget_share(tx, given_up.pk)
    batches.hand_over(tx, given_up.pk, job.pk)
    outstanding.hand_over(tx, job.task_pk, job.lo, given_up.pk, job.pk)
    return job


@dataclass(frozen=True, slots=True)
class Failed:
    """The job has ended with an error."""

    job_id: bytes


def advance_collection(
    tx: Tx, lease: Lease, task: Task, at: Instant, look_again: int
) -> Move | Failed | None:
    """Make a waiting collection's next move and return it; ``None`` if the lease is lost.

    A ``Freeze`` is left to the caller, which keeps the lease for it. Otherwise the job runs again
    when it is touched, or at ``look_again`` (ms) at the latest.
    """
    if not collections.claim(tx, lease, CollectionState.WAITING):  # D1
        return None
    job = collections.by_pk(tx, lease.pk)
    if refusal := _obstacle_to(tx, task, job, at):
        collections.fail(tx, lease, *refusal)
        collections.keep(tx, job.pk, at.safe)
        return Failed(job.id)
    move = _planned(tx, task, job, job.cut, at)
    if isinstance(move, FixCut):
        collections.set_cut(tx, job.pk, move.seq)
        after = _planned(tx, task, job, move.seq, at)  # all up to the cut may be decided already
        move = after if isinstance(after, Freeze) else move
    if not isinstance(move, Freeze):
        leases.release(tx, lease, look_again, reset_attempts=True)
    return move


def _planned(tx: Tx, task: Task, job: CollectionJob, cut: int | None, at: Instant) -> Move:
    """Return the job's next move, given the present reports and batches."""
    minimum = task.configuration.min_batch_size
    too_early_after = task.too_early_after_at(at)
    if task.by_time:
        backlog = chunks.backlog(tx, task.task_pk, (job.lo, job.hi), cut, too_early_after)
        aggregated = batches.aggregated(tx, task.task_pk, job.lo, job.hi)
        return interval_move(BucketRange(job.lo, job.hi), aggregated, backlog, cut, minimum)
    backlog = chunks.backlog(tx, task.task_pk, (b"", b""), cut, too_early_after)
    mark = watermarks.expired_before(tx, task, at)
    target = task.batch_target_size
    open_batches = outstanding.open_batches(tx, task.task_pk, mark, until=target)
    return next_batch_move(open_batches, backlog, cut, minimum, target)


def _obstacle_to(tx: Tx, task: Task, job: CollectionJob, at: Instant) -> tuple[str, str] | None:
    """Return (error, detail) if the job's batch can't be collected any more."""
    if not task.by_time:
        return None
    if refusal := overlap_error(batches.overlapping(tx, task.task_pk, job.lo, job.hi)):  # C5
        return refusal
    if job.lo < time_bucket(
        watermarks.expired_before(tx, task, at)
    ):  # D6: the Helper would refuse it
        return "batchInvalid", "expired"
    return None


class BatchChangedError(Exception):
    """The batch has changed since it was summed; advance the collection again."""


def freeze_collection(
    tx: Tx, lease: Lease, task: Task, frozen: FrozenBatch, extent: tuple[int, int], at: Instant
) -> bool:
    """Close the batch; ``extent`` is that of its total. Return whether the lease still held.

    Raises ``BatchChangedError``, which undoes everything.
    """
    if not collections.freeze(tx, lease, frozen):  # D1
        return False
    batch = BucketRange(frozen.lo, frozen.hi)
    job = collections.by_pk(tx, lease.pk)
    if (
        _planned(tx, task, job, job.cut, at) != Freeze(batch)
        or batches.extent(tx, task.task_pk, *batch) != extent
        or _obstacle_to(tx, task, job, at)  # D6: contributions may have been deleted since
    ):
        raise BatchChangedError
    if not task.by_time and not outstanding.bind(tx, task.task_pk, batch.lo, job.pk):  # A8
        raise BatchChangedError
    batches.close(tx, task.task_pk, *batch, state=RangeState.CLOSED, collection_pk=job.pk)
    collections.touch(tx, task.task_pk, at.now)  # C5: those that overlap fail now
    return True


def finish_collection(tx: Tx, lease: Lease, response: bytes) -> bool:
    """Store the CollectionJobResp and mark the batch collected; return whether the lease held."""
    if not collections.finish(tx, lease, response):  # D1
        return False
    batches.mark_collected(tx, lease.pk)
    return True


def refuse_collection(tx: Tx, lease: Lease, task: Task, error: str, detail: str) -> bool:
    """Fail the job with the error by which the Helper refused it for good.

    Return whether the lease held. The batch takes reports again, except after ``batchOverlap``,
    which means that the Helper has it as collected. A leader-selected batch stays bound to its job
    (rule A8), and no other collection gets it, so its reports are counted. So are those of suspect
    buckets after ``batchMismatch``.
    """
    if not collections.fail(tx, lease, error, detail):  # D1
        return False
    job = collections.by_pk(tx, lease.pk)
    if error == "batchOverlap" or not task.by_time:
        batches.mark_collected(tx, job.pk)
        if error != "batchOverlap":
            counters.add(tx, task.task_pk, {"contribution_uncollectable": job.n or 0})
        return True
    batches.reopen(tx, job.pk)
    if error == "batchMismatch":
        _close_suspect_buckets(tx, job)
    return True


def _close_suspect_buckets(tx: Tx, job: CollectionJob) -> None:
    """Close the suspect buckets of a time interval for good, and count their reports: no batch with
    one of them matches the Helper's any more. The others can still be collected.
    """
    batch = BucketRange(job.lo, job.hi)
    for bucket in suspects.within(tx, job.task_pk, batch):
        lo, hi = bucket_range(bucket)
        n = batches.aggregated(tx, job.task_pk, lo, hi)
        batches.close(tx, job.task_pk, lo, hi, state=RangeState.COLLECTED, collection_pk=job.pk)
        counters.add(tx, job.task_pk, {"contribution_uncollectable": n})
    suspects.drop(tx, job.task_pk, batch)


def give_up_collection(
    tx: Tx, lease: Lease, task: Task, error: tuple[str | None, str], at: Instant
) -> bool:
    """Fail the job with the Helper's error (token, detail) after long refusal (rule D4).

    Return whether the lease held. The batch reopens only if no request was ever sent: otherwise the
    Helper may have answered one, and then serves no other request for this batch.
    """
    job = collections.by_pk(tx, lease.pk)
    reopens = task.by_time and not job.sends
    if not collections.fail(tx, lease, *error, keep_share=not reopens):  # D1
        return False
    collections.keep(tx, job.pk, at.safe)
    if reopens:
        batches.reopen(tx, job.pk)
    else:
        batches.give_up(tx, job.pk)
    counters.add(tx, task.task_pk, {"collection_given_up": 1})
    return True


def delete_collection(tx: Tx, task: Task, job_id: bytes, at: Instant) -> bool:
    """Delete the job, also while a step works on it; return whether there was one.

    A collected batch stays collected; a frozen one becomes so if the Helper may have been asked for
    its share. A leader-selected batch, once frozen, is bound to its job for ever (rule A8). A job
    that was given up still keeps its batch for an identical query.
    """
    job = collections.by_id(tx, task.task_pk, job_id, task.mark_at(at))
    if job is None:
        return False
    if job.state in (CollectionState.FROZEN, CollectionState.POLLING):
        if job.sends or not task.by_time:
            batches.mark_collected(tx, job.pk)
        else:
            batches.reopen(tx, job.pk)
    collections.delete(tx, job.pk, keep_share=job.is_given_up)
    return True


def expire_collection(
    tx: Tx, task_pk: int, collection_pk: int, expired_before: int, safe: int
) -> bytes | None:
    """Fail a frozen collection of reports below the watermark, and count it. Return its id, or
    ``None`` if it has ended meanwhile. ``safe`` is the time by the safe clock (ms).

    If it was given up before, what it keeps is forgotten, and its reports are counted as dropped.
    """
    discard_given_up(tx, collection_pk, "contribution_dropped", expired_before)
    ended = collections.give_up(tx, collection_pk, "batchInvalid", "expired", expired_before)
    if ended is None:
        return None
    collections.keep(tx, collection_pk, safe)
    if ended.sends:
        batches.mark_collected(tx, collection_pk)
    else:
        batches.reopen(tx, collection_pk)
    counters.add(tx, task_pk, {"collection_expired": 1})
    return ended.id


def discard_given_up(
    tx: Tx, collection_pk: int, counter: str, expired_before: int | None = None
) -> int:
    """Forget what a collection keeps that was given up, and count its reports: nobody can collect
    them any more. Return their number; 0 if it keeps nothing, or its reports are not expired.
    """
    dropped = collections.forget_share(tx, collection_pk, expired_before)  # D1
    if dropped is None:
        return 0
    batches.mark_collected(tx, collection_pk)
    counters.add(tx, dropped.task_pk, {counter: dropped.n})
    return dropped.n
