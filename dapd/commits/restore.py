"""The transactions after a restore: quarantine what the file may have forgotten, reopen it later.

A restored database lacks the report ids admitted and the batches collected since the backup, so it
would accept replays and second collections. ``quarantine`` therefore refuses every report that may
exist by now, and closes every batch that may have been collected. An operator compares with the
peer and reopens batches with ``restore_accept``. Reports of reopened batches stay refused, because
their ids may still be forgotten.
"""

from __future__ import annotations

from dataclasses import dataclass

from dapd.commits.leader_jobs import give_up_job
from dapd.datastore import batches, collections, leader_jobs, outstanding, tasks, watermarks
from dapd.datastore.sqlite import Tx
from dapd.datastore.tasks import Outline
from dapd.protocol.batches import BucketRange, batch_id_range, gaps, merged, time_bucket
from dapd.protocol.states import LeaderJobState, RangeState
from dapd.protocol.task import Instant

REASON = "restored from a backup"


def quarantine(tx: Tx, at: Instant, early_leeway: float) -> list[Outline]:
    """Quarantine every task, in both roles, and note the restore for tasks added later.

    Return the quarantined tasks. ``early_leeway`` is how far ahead of the clock (s) a report may
    have been admitted. A second run at the same moment changes nothing.
    """
    newest = at.later + int(early_leeway * 1000)
    watermarks.note_restore(tx, newest)
    for task in tasks.outlines(tx):
        _shut_batches(tx, task, newest)
        _end_jobs(tx, task, at.now)
    return tasks.outlines(tx)


def quarantine_added(tx: Tx, task_pk: int) -> None:
    """Quarantine a task added after a restore: it may have been here before the backup."""
    newest = watermarks.last_restore(tx)
    if newest is not None:
        outline = next(each for each in tasks.outlines(tx) if each.task_pk == task_pk)
        _shut_batches(tx, outline, newest)


def _shut_batches(tx: Tx, task: Outline, newest: int) -> None:
    """Refuse the reports up to ``newest`` (ms), and close all batches that they may be in."""
    before = newest // (1000 * task.configuration.time_precision) + 1
    watermarks.quarantine(tx, task.task_pk, before)
    if task.by_time:
        whole = BucketRange(time_bucket(0), time_bucket(before))
        open_ranges = gaps(whole, batches.closed_ranges(tx, task.task_pk, whole.hi))
    else:
        known = {
            *outstanding.unbound(tx, task.task_pk),
            *batches.buckets(tx, task.task_pk),
        }
        open_ranges = [
            batch_id_range(batch_id)
            for batch_id in sorted(known)
            if batches.bucket_state(tx, task.task_pk, batch_id) is None
        ]
    batches.quarantine(tx, task.task_pk, open_ranges)


def _end_jobs(tx: Tx, task: Outline, now: int) -> None:
    """End a Leader's jobs that may have progressed after the backup.

    A Helper's received jobs need no action: their reports are dropped for their times.
    """
    if not task.is_leader:
        return
    for job_pk in leader_jobs.unfinished(tx, task.task_pk):
        give_up_job(tx, job_pk, LeaderJobState.LOST, REASON, now)
    # Frozen collections continue: the Helper may know their stored bytes. Waiting ones fail now.
    collections.count_as_sent(tx, task.task_pk)
    collections.touch(tx, task.task_pk, now)


@dataclass(frozen=True, slots=True)
class BatchTally:
    """One bucket's number of reports and its checksum, as in an AggregateShareReq.

    If the Aggregators agree on a batch, both have the same.
    """

    bucket: bytes
    n: int
    checksum: bytes
    state: RangeState | None


@dataclass(frozen=True, slots=True)
class Quarantine:
    """A task after a restore. ``ranges`` are those still closed because of the restore."""

    task: Outline
    ranges: list[BucketRange]
    tallies: list[BatchTally]
    is_complete: bool
    """Whether ``tallies`` has all buckets rather than the first ones."""


def inspect(tx: Tx, task: Outline, limit: int, *, everything: bool) -> Quarantine:
    """Return what is quarantined of a task, with tallies to compare with the peer's.

    There are tallies of the first ``limit`` quarantined buckets, or of all buckets if
    ``everything`` is true, as the peer needs them to compare.
    """
    states = {
        bucket: batches.bucket_state(tx, task.task_pk, bucket)
        for bucket in sorted(batches.buckets(tx, task.task_pk))
    }
    wanted = [
        bucket for bucket, state in states.items() if everything or state is RangeState.QUARANTINED
    ]
    tallies = []
    for bucket in wanted[:limit]:
        n, checksum = batches.tally(tx, task.task_pk, bucket)
        tallies.append(BatchTally(bucket, n, checksum, states[bucket]))
    ranges = merged(batches.quarantined_ranges(tx, task.task_pk))
    return Quarantine(task, ranges, tallies, len(wanted) <= limit)


def accepted_range(task: Outline, batch: tuple[int, int] | bytes | None) -> BucketRange:
    """Return the range that an operator names: (start, end) in time precisions, a batch id, or
    ``None`` for the whole task.
    """
    match batch:
        case None:
            # This end is above every bucket: 8 bytes of time, or a batch id and one byte more.
            return BucketRange(b"", b"\xff" * 34)
        case bytes():
            return batch_id_range(batch)
        case (start, end):
            assert task.by_time
            return BucketRange(time_bucket(start), time_bucket(end))


def restore_accept(tx: Tx, task: Outline, within: BucketRange) -> list[BucketRange]:
    """Reopen what is quarantined in ``within``; return the ranges that were reopened."""
    opened = []
    for quarantined in batches.quarantined_ranges(tx, task.task_pk, within):
        batches.release(tx, task.task_pk, quarantined)
        kept = gaps(quarantined, [within])
        batches.quarantine(tx, task.task_pk, kept)
        opened += gaps(quarantined, kept)
    return merged(opened)
