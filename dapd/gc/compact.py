"""Merge the contributions of many jobs to one bucket into a single one.

A busy bucket gets a contribution from each job and may stay open for weeks. Merging keeps the sum
for a collection quick and the database small. Only the replacement occupies the writer. Left out:
that transaction (``dapd.commits.garbage``), and closed batches, whose contributions are summed once
or will be deleted.
"""

from __future__ import annotations

import secrets
from itertools import islice

import structlog
import trio

from dapd.commits.batch_total import added, nothing
from dapd.commits.garbage import ContributionsChangedError, compact_bucket
from dapd.crypto import Sealer, batch_share_aad
from dapd.datastore import Tx, batches
from dapd.datastore.batches import Contribution
from dapd.protocol.batches import batch_id_range, time_bucket
from dapd.protocol.task import Task
from dapd.runtime.context import Context

_log = structlog.get_logger()

MANY = 64
"""The fewest contributions of a bucket that are worth merging."""
_PAGE = 256
_PAGE_BYTES = 4 << 20
"""The most that one step reads and its transaction deletes: a few ms of the writer's time."""
_PAUSE = 0.02
_ALARM_EVERY = 600.0


class Compaction:
    """Merges the contributions of open buckets, round by round."""

    def __init__(self, context: Context, *, page_bytes: int = _PAGE_BYTES) -> None:
        self._context = context
        self._page_bytes = page_bytes
        self._since = 0

    async def run_round(self) -> None:
        """Merge the contributions of every open bucket that has many, and that has got one since
        the last round; stop early when draining.
        """
        context = self._context
        crowded, last = await context.read(batches.crowded, self._since, MANY)
        at, done = context.instant(), True
        for task_pk, bucket in crowded:
            task = context.tasks.served(task_pk)
            if task is None or (task.by_time and bucket < time_bucket(task.expired_before_at(at))):
                continue
            done = await self._compact_bucket(task, bucket) and done
        if done:
            self._since = last

    async def _compact_bucket(self, task: Task, bucket: bytes) -> bool:
        """Return whether the bucket has few contributions now."""
        context, size = self._context, page_size(task, self._page_bytes)
        while not context.draining.is_set():
            parts = await context.read(load, task, bucket, size)
            if len(parts) < min(size, MANY):
                return True
            try:
                merged = await context.compute(merge_contributions, task, context.sealer, parts)
                await context.run(
                    compact_bucket, task.task_pk, [part.share_pk for part in parts], merged
                )
            except ContributionsChangedError:
                return False  # the next round looks again
            except ValueError as error:
                _alarm(context, task, error)
                return False
            await trio.sleep(_PAUSE)
        return False


def page_size(task: Task, page_bytes: int = _PAGE_BYTES) -> int:
    """Return how many contributions one step merges; at least two, so that it makes progress."""
    share = len(nothing(task).share)
    return max(2, min(_PAGE, page_bytes // share))


def load(tx: Tx, task: Task, bucket: bytes, size: int) -> list[Contribution]:
    """Return up to ``size`` contributions of the bucket."""
    pages = batches.contributions_in_pages(tx, task.task_pk, *batch_id_range(bucket), size)
    return [part for page in islice(pages, 1) for part in page]


def merge_contributions(task: Task, sealer: Sealer, parts: list[Contribution]) -> Contribution:
    """Return one contribution, under a new id, that adds as much to the bucket as all parts do.

    Raises ``ValueError`` if a share can't be unsealed.
    """
    bucket, job_id = parts[0].bucket, secrets.token_bytes(16)
    total = added(task, sealer, nothing(task), parts)
    share = sealer.seal(batch_share_aad(task.task_id, job_id, bucket), total.share)
    return Contribution(
        bucket, job_id, total.n, total.checksum, total.time_min, total.time_max, share
    )


def _alarm(context: Context, task: Task, error: ValueError) -> None:
    if context.seldom.due(f"compaction_failed {task.id_text}", _ALARM_EVERY):
        _log.error(
            "compaction_failed",
            task_id=task.id_text,
            error=str(error),
            remedy="if a sealing key is missing, add it to [datastore] sealing_keys; else run "
            "`dapd datastore check`",
        )
