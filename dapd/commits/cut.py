"""The transaction that moves a waiting collection on: wait, fix the cut, or fail.

What it waits for is decided in the transaction that lets go of the job, so that an upload or a
finished job between the two is not missed. Rules C3, C5, C6, D6.
"""

from __future__ import annotations

from dataclasses import dataclass

from dapd.datastore import batches, chunks, collections, leases, marks, outstanding
from dapd.datastore.collections import CollectionJob
from dapd.datastore.engines import Tx
from dapd.datastore.leases import Lease
from dapd.protocol.batches import BucketRange, obstacle, time_bucket
from dapd.protocol.collect import FixCut, Freeze, Move, interval_move, next_batch_move
from dapd.protocol.task import Instant, Task


@dataclass(frozen=True, slots=True)
class Failed:
    """The job has ended with an error."""

    job_id: bytes


def advance(tx: Tx, lease: Lease, task: Task, at: Instant, look_again: int) -> Move | Failed | None:
    """The move that was made; at ``Freeze``, which is still to be made, the lease is kept.

    The job is looked at again when it is touched, at ``look_again`` (ms) at the latest. ``None``:
    the lease is lost.
    """
    if not collections.claim(tx, lease, "waiting"):  # D1
        return None
    job = collections.by_pk(tx, lease.pk)
    if refusal := obstacle_to(tx, task, job, at):
        collections.fail(tx, lease, *refusal)
        collections.keep(tx, job.pk, at.safe)
        return Failed(job.id)
    move = planned(tx, task, job, job.cut, at)
    if isinstance(move, FixCut):
        collections.set_cut(tx, job.pk, move.seq)
        after = planned(tx, task, job, move.seq, at)  # all up to the cut may be decided already
        move = after if isinstance(after, Freeze) else move
    if not isinstance(move, Freeze):
        leases.release(tx, lease, look_again, reset_attempts=True)
    return move


def planned(tx: Tx, task: Task, job: CollectionJob, cut: int | None, at: Instant) -> Move:
    """What the job should do next, given everything in the database."""
    minimum = task.configuration.min_batch_size
    if task.by_time:
        backlog = chunks.backlog(tx, task.task_pk, job.lo, job.hi, cut)
        aggregated = batches.aggregated(tx, task.task_pk, job.lo, job.hi)
        return interval_move(BucketRange(job.lo, job.hi), aggregated, backlog, cut, minimum)
    backlog = chunks.backlog(tx, task.task_pk, b"", b"", cut)
    mark = marks.expired_before(tx, task, at)
    open_batches = outstanding.open_batches(tx, task.task_pk, mark)
    return next_batch_move(open_batches, backlog, cut, minimum, task.batch_target_size)


def obstacle_to(tx: Tx, task: Task, job: CollectionJob, at: Instant) -> tuple[str, str] | None:
    """(error, detail) of a batch that can't be collected any more."""
    if not task.by_time:
        return None
    if refusal := obstacle(batches.overlapping(tx, task.task_pk, job.lo, job.hi)):  # C5
        return refusal
    if job.lo < time_bucket(marks.expired_before(tx, task, at)):  # D6: the Helper would refuse it
        return "batchInvalid", "expired"
    return None
