"""The transactions after a restore: quarantine what the file may have forgotten, reopen it later.

A restored file knows neither the report ids that were admitted since it was made nor the batches
that were collected: replays and second collections would pass. ``quarantine`` therefore refuses
every report that there may have been by now, and closes every batch that may have been collected.
An operator compares with the peer and reopens batches with ``restore_accept``; their reports stay
refused, because their ids may be forgotten all the same.
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
    """Quarantine every task, in both roles, and note it for those that are added later.

    Returns them as they are then. ``early_leeway`` is how far ahead of the clock (s) a report may
    have been admitted. Run again at the same moment it changes nothing.
    """
    newest = at.later + int(early_leeway * 1000)
    watermarks.note_restore(tx, newest)
    for task in tasks.outlines(tx):
        _shut_batches(tx, task, newest)
        _doubt_jobs(tx, task, at.now)
    return tasks.outlines(tx)


def quarantine_added(tx: Tx, task_pk: int) -> None:
    """A task that is new to a restored file may have been here before: the same for it."""
    newest = watermarks.last_restore(tx)
    if newest is not None:
        outline = next(each for each in tasks.outlines(tx) if each.task_pk == task_pk)
        _shut_batches(tx, outline, newest)


def _shut_batches(tx: Tx, task: Outline, newest: int) -> None:
    """Refuse the reports up to ``newest`` (ms), and shut all batches that they may be in."""
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


def _doubt_jobs(tx: Tx, task: Outline, now: int) -> None:
    """End what may have gone on elsewhere since. A Helper's received jobs need nothing: whatever
    they hold is dropped by its time.
    """
    if not task.is_leader:
        return
    for job_pk in leader_jobs.unfinished(tx, task.task_pk):
        give_up_job(tx, job_pk, LeaderJobState.LOST, REASON, now)
    # A frozen collection goes on: the Helper knows its stored bytes. A waiting one fails now.
    collections.count_as_sent(tx, task.task_pk)
    collections.touch(tx, task.task_pk, now)


@dataclass(frozen=True, slots=True)
class BatchTally:
    """What one bucket holds here; ``checksum`` is that of its report ids, as DAP counts them.

    Both Aggregators have the same for a batch that they agree on.
    """

    bucket: bytes
    n: int
    checksum: bytes
    state: RangeState | None


@dataclass(frozen=True, slots=True)
class Quarantine:
    """One task as a restore has left it. ``ranges`` are those that are still closed for it."""

    task: Outline
    ranges: list[BucketRange]
    tallies: list[BatchTally]
    is_complete: bool
    """Whether ``tallies`` has all buckets; else it has the first ones."""


def restore_accept(tx: Tx, task: Outline, within: BucketRange) -> list[BucketRange]:
    """Open what is quarantined in ``within``; the ranges that were opened."""
    opened = []
    for quarantined in batches.quarantined_ranges(tx, task.task_pk, within):
        batches.release(tx, task.task_pk, quarantined)
        kept = gaps(quarantined, [within])
        batches.quarantine(tx, task.task_pk, kept)
        opened += gaps(quarantined, kept)
    return merged(opened)


def accepted_range(task: Outline, batch: tuple[int, int] | bytes | None) -> BucketRange:
    """What an operator names: (start, end) in time precisions, a batch id, or all of the task."""
    match batch:
        case None:
            # Above every bucket: those are 8 bytes of time, or a batch id with one byte more.
            return BucketRange(b"", b"\xff" * 34)
        case bytes():
            return batch_id_range(batch)
        case (start, end):
            assert task.by_time
            return BucketRange(time_bucket(start), time_bucket(end))


def inspect(tx: Tx, task: Outline, limit: int, *, everything: bool) -> Quarantine:
    """What is quarantined of a task, and what its buckets hold: the first ``limit`` of those that
    are quarantined, or of all (``everything``), which is what the peer compares with.
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
