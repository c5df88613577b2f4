"""The transaction that follows a restore: what the file may have forgotten is refused and closed.

A restored file knows neither the report ids that were admitted since it was made nor the batches
that were collected: replays and second collections would pass. So every report that there may have
been by now is refused, and every batch that may have been collected is closed, until an operator
who has asked the peer reopens it (``dapd.commits.restore_accept``).
"""

from __future__ import annotations

from dapd.commits.give_up import give_up
from dapd.datastore import batches, collections, leader_jobs, marks, outstanding, tasks
from dapd.datastore.engines import Tx
from dapd.datastore.tasks import Outline
from dapd.protocol.batches import BucketRange, batch_id_range, gaps, time_bucket
from dapd.protocol.states import LeaderJob
from dapd.protocol.task import Instant

REASON = "restored from a backup"


def quarantine(tx: Tx, at: Instant, early_leeway: float) -> list[Outline]:
    """Quarantine every task, in both roles, and note it for those that are added later.

    Returns them as they are then. ``early_leeway`` is how far ahead of the clock (s) a report may
    have been admitted. Run again at the same moment it changes nothing.
    """
    newest = max(at.now, at.safe) + int(early_leeway * 1000)
    marks.note_restore(tx, newest)
    for task in tasks.outlines(tx):
        _close(tx, task, newest)
        _doubt(tx, task, at.now)
    return tasks.outlines(tx)


def quarantine_added(tx: Tx, task_pk: int) -> None:
    """A task that is new to a restored file may have been here before: the same for it."""
    newest = marks.last_restore(tx)
    if newest is not None:
        outline = next(each for each in tasks.outlines(tx) if each.task_pk == task_pk)
        _close(tx, outline, newest)


def _close(tx: Tx, task: Outline, newest: int) -> None:
    """Refuse the reports up to ``newest`` (ms), and shut all batches that they may be in."""
    before = newest // (1000 * task.configuration.time_precision) + 1
    marks.quarantine(tx, task.task_pk, before)
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


def _doubt(tx: Tx, task: Outline, now: int) -> None:
    """End what may have gone on elsewhere since. A Helper's received jobs need nothing: whatever
    they hold is dropped by its time.
    """
    if not task.is_leader:
        return
    for job_pk in leader_jobs.unfinished(tx, task.task_pk):
        give_up(tx, job_pk, LeaderJob.LOST, REASON, now)
    # A frozen collection goes on: the Helper knows its stored bytes. A waiting one fails now.
    collections.count_as_sent(tx, task.task_pk)
    collections.touch(tx, task.task_pk, now)
