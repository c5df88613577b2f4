"""The garbage collector's loop: raise each task's watermark, then delete what is below it (D6).

Each round also merges contributions (``dapd.gc.compact``), gives back space (``dapd.gc.space``) and
removes expired copies of the database (``dapd.gc.copies``).

Raising a watermark is a transaction of its own, and deletions go by the stored one alone. If the
process is killed between the two, no reader sees a difference: reads hide rows by the same
comparison. Left out: which rows to delete in which order (``dapd.gc.sweep``).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Awaitable, Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial

import structlog
import trio
from structlog.contextvars import bound_contextvars

from dapd.datastore import Tx, batches, expiry, helper_jobs, watermarks
from dapd.datastore import tasks as task_table
from dapd.datastore.expiry import PAGE
from dapd.datastore.sqlite import Row
from dapd.datastore.tasks import UnreadableTask
from dapd.gc import compact, copies, space
from dapd.gc.sweep import ALL, Sweep, may_find
from dapd.protocol.states import RangeState
from dapd.protocol.task import Instant, Task, TaskState
from dapd.runtime.context import Context

_log = structlog.get_logger()
_ANSWERS = 20 * PAGE


async def run(context: Context) -> None:
    """Run a round every ``[gc] interval`` until the daemon drains."""
    parts: list[Callable[[], Awaitable[object]]] = [
        GarbageCollector(context).collect,
        compact.Compaction(context).run_round,
        partial(space.run_round, context),
        partial(copies.run_round, context),
    ]
    while not context.draining.is_set():
        with trio.move_on_after(context.config.gc.interval):
            await context.draining.wait()
            return
        for part in parts:
            try:
                await part()
            except Exception:  # noqa: BLE001 - the loop's edge: logged, and tried again
                context.metrics.gc_failures.inc()
                _log.exception(
                    "garbage_collection_failed",
                    remedy="dapd tries again; if this repeats, run `dapd datastore check`",
                )


@dataclass(frozen=True, slots=True)
class _Look:
    """The tasks whose interval ended longer than ``ended_task_retention`` ago, each with a mark
    above all its reports; the watermarks that must rise, by task; and, of the other tasks, those of
    which something is to be deleted.
    """

    ended: list[tuple[Task, int]]
    raised: dict[int, int]
    due: list[Task]


class GarbageCollector:
    """Deletes what has expired, of all tasks, whether they are served or not.

    A round looks at ``answers`` kept answers of each task; the next one goes on behind them.
    """

    def __init__(self, context: Context, *, answers: int = _ANSWERS) -> None:
        self._context = context
        self._answers = answers
        self._answered: dict[int, int] = {}
        self._parsed: dict[int, tuple[Row, Task | None]] = {}

    async def collect(self) -> Mapping[bytes, Counter[str]]:
        """Run one whole round. Return how many rows of each kind it deleted, by task id."""
        at = self._context.instant()
        collected = {}
        for task in await self._prepare(at):
            with bound_contextvars(task_id=task.id_text):
                gone = await self._collect_task(task, at)
                if gone.total():
                    collected[task.task_id] = gone
                    for kind, rows in gone.items():
                        self._context.metrics.gc_rows.labels(kind).inc(rows)
                    _log.info("garbage_collected", rows={each: n for each, n in gone.items() if n})
        self._context.metrics.succeeded("garbage_collection")
        return collected

    async def _prepare(self, at: Instant) -> list[Task]:
        """Delete the tasks that have ended, and raise the watermarks; reload, so that requests
        below them are refused before anything is deleted. Return the tasks of which something is to
        be deleted.
        """
        look = await self._context.read(self._look, at)
        if not look.ended and not look.raised:
            return look.due
        for task, mark in look.ended:
            if await self._context.run(task_table.delete, task.task_pk, mark):
                _log.info("task_retired", task_id=task.id_text, reason="its task_interval is over")
        if look.raised:
            await self._context.run(raise_marks, look.raised)
        await self._context.tasks.reload()
        return (await self._context.read(self._look, at)).due

    def _look(self, tx: Tx, at: Instant) -> _Look:
        """Find out what is to be done. This takes long for many tasks, so it runs in a reader."""
        retention = self._context.config.gc.ended_task_retention * 1000
        look = _Look([], {}, [])
        for task in self._public_tasks(tx):
            mark = task.expired_before_at(at)
            interval = task.configuration.task_interval
            if (
                interval is not None
                and task.state not in (TaskState.DELETED, TaskState.PURGED)
                and task.ms_of(interval.end) + retention <= at.safe
            ):
                # No report of this task has a time beyond its interval.
                look.ended.append((task, max(interval.end, mark)))
            elif mark > task.expired_before:
                look.raised[task.task_pk] = mark
            elif _is_due(tx, task, at):
                look.due.append(task)
        return look

    def _public_tasks(self, tx: Tx) -> Iterator[Task]:
        """Yield every stored task, without secrets, except those of another version of DAP.

        A task is parsed only if its row is not the one that was parsed last.
        """
        for sealed in task_table.each_task(tx):
            row, task = self._parsed.get(sealed.task_pk, (None, None))
            if row != sealed.row:
                try:
                    task = sealed.public()
                except UnreadableTask:
                    task = None  # ``task_unreadable`` was logged when the task was loaded
                self._parsed[sealed.task_pk] = sealed.row, task
            if task is not None:
                yield task

    async def _collect_task(self, task: Task, at: Instant) -> Counter[str]:
        """Delete what may go of one task. Return how many rows of each kind that was."""
        if task.state is TaskState.DELETED:
            return await self._purge(task)
        # A request under way may have left rows of a task that was deleted. They are below its
        # mark, which holds even if the task is being added again just now.
        sweep = Sweep(self._context, task, task.mark_of(task.expired_before, at))
        if task.expired_before:
            await sweep.run()
        if not task.is_leader:
            await self._forget_answers(task, sweep)
        return sweep.counts

    async def _purge(self, task: Task) -> Counter[str]:
        """Delete everything of a deleted task but its tombstone.

        Reload the live task first: one that this process still takes for active would accept
        reports by its old mark as soon as the task is added again.
        """
        await self._context.tasks.reload()
        sweep = Sweep(self._context, task, ALL)
        if await self._has_rows(task):
            await sweep.run()
        if await self._context.run(_purge, task.task_pk):
            _log.info("task_purged")
        return sweep.counts

    async def _has_rows(self, task: Task) -> bool:
        return await self._context.read(task_table.has_rows, task.task_pk)

    async def _forget_answers(self, task: Task, sweep: Sweep) -> None:
        """Delete the answers that a Helper need not keep any more (A7), a bounded part a round."""
        context, left = self._context, self._answers
        while left > 0:
            after, most = self._answered.pop(task.task_pk, 0), min(left, PAGE)
            left -= most
            last, settled = await context.read(_settled, task, after, most)
            await sweep.forget_answers(settled)
            if last is None or context.draining.is_set():
                return
            self._answered[task.task_pk] = last


def _is_due(tx: Tx, task: Task, at: Instant) -> bool:
    if task.state is TaskState.DELETED:
        return True
    mark = task.mark_of(task.expired_before, at)
    expired = bool(task.expired_before) and may_find(tx, task, mark)
    return expired or (not task.is_leader and expiry.has_answered(tx, task.task_pk))


def raise_marks(tx: Tx, raised: Mapping[int, int]) -> None:
    """Raise the watermarks of these tasks (task_pk: mark); none ever falls (rule D6)."""
    for task_pk, mark in raised.items():
        watermarks.raise_expired_before(tx, task_pk, mark)


def _settled(tx: Tx, task: Task, after: int, most: int) -> tuple[int | None, list[int]]:
    """Look at the next page of finished jobs. Return its last job, or ``None`` if no page follows,
    and the jobs whose buckets are all collected.
    """
    page = helper_jobs.answered(tx, task.task_pk, after, most)
    size = 8 if task.by_time else 32
    states: dict[bytes, RangeState | None] = {}
    settled = []
    for job in page:
        buckets = [job.buckets[at : at + size] for at in range(0, len(job.buckets), size)]
        for bucket in buckets:
            if bucket not in states:
                states[bucket] = batches.bucket_state(tx, task.task_pk, bucket)
        if buckets and all(states[bucket] is RangeState.COLLECTED for bucket in buckets):
            settled.append(job.job_pk)
    return (page[-1].job_pk if len(page) == most else None), settled


def _purge(tx: Tx, task_pk: int) -> bool:
    return not task_table.has_rows(tx, task_pk) and task_table.purge(tx, task_pk)
