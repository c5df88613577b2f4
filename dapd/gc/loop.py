"""The garbage collector's loop: raise each task's watermark, then delete what is below it (D6).

Each round also merges contributions (``dapd.gc.compact``), gives back space (``dapd.gc.space``) and
removes expired copies of the database (``dapd.gc.copies``).

Raising a watermark is a transaction of its own, and deletions go by the stored one alone. If the
process is killed between the two, no reader sees a difference: reads hide rows by the same
comparison. Left out: which rows to delete in which order (``dapd.gc.sweep``).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Awaitable, Callable, Mapping
from functools import partial

import structlog
import trio
from structlog.contextvars import bound_contextvars

from dapd.datastore import Tx, batches, helper_jobs, watermarks
from dapd.datastore import tasks as task_table
from dapd.datastore.expiry import PAGE
from dapd.datastore.tasks import UnreadableTask
from dapd.gc import compact, copies, space
from dapd.gc.sweep import ALL, Sweep
from dapd.protocol.states import RangeState
from dapd.protocol.task import Instant, Task, TaskState
from dapd.runtime.context import Context

_log = structlog.get_logger()
_ANSWERS = 20 * PAGE


async def run(context: Context) -> None:
    """Run a round every ``[gc] interval`` until the daemon drains."""
    parts: list[Callable[[], Awaitable[object]]] = [
        GarbageCollector(context).collect,
        partial(compact.run_round, context),
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


class GarbageCollector:
    """Deletes what has expired, of all tasks, whether they are served or not.

    A round looks at ``answers`` kept answers of each task; the next one goes on behind them.
    """

    def __init__(self, context: Context, *, answers: int = _ANSWERS) -> None:
        self._context = context
        self._answers = answers
        self._answered: dict[int, int] = {}

    async def collect(self) -> Mapping[bytes, Counter[str]]:
        """Run one whole round. Return how many rows of each kind it deleted, by task id."""
        at = self._context.instant()
        await self._retire(await self._tasks(), at)
        await self._raise_marks(await self._tasks(), at)
        collected = {}
        for task in await self._tasks():
            with bound_contextvars(task_id=task.id_text):
                gone = await self._collect_task(task, at)
                if gone.total():
                    collected[task.task_id] = gone
                    for kind, rows in gone.items():
                        self._context.metrics.gc_rows.labels(kind).inc(rows)
                    _log.info("garbage_collected", rows={each: n for each, n in gone.items() if n})
        self._context.metrics.succeeded("garbage_collection")
        return collected

    async def _tasks(self) -> list[Task]:
        """Return every stored task, without secrets; leave out those of another version of DAP."""
        found = []
        for sealed in await self._context.read(task_table.all_tasks):
            try:
                found.append(sealed.public())
            except UnreadableTask:
                continue  # ``task_unreadable`` was logged when the task was loaded
        return found

    async def _retire(self, tasks: list[Task], at: Instant) -> None:
        """Delete the tasks whose interval ended longer than ``ended_task_retention`` ago."""
        retention = self._context.config.gc.ended_task_retention * 1000
        for task in tasks:
            interval = task.configuration.task_interval
            if interval is None or task.state in (TaskState.DELETED, TaskState.PURGED):
                continue
            if task.ms_of(interval.end) + retention > at.safe:
                continue
            # No report of this task has a time beyond its interval.
            mark = max(interval.end, task.expired_before_at(at))
            if await self._context.run(task_table.delete, task.task_pk, mark):
                _log.info("task_retired", task_id=task.id_text, reason="its task_interval is over")
                await self._context.tasks.reload()

    async def _raise_marks(self, tasks: list[Task], at: Instant) -> None:
        """Raise the watermarks of all tasks; reload, so that requests below them are refused before
        anything is deleted.
        """
        raised = {
            task.task_pk: mark
            for task in tasks
            if (mark := task.expired_before_at(at)) > task.expired_before
        }
        if raised:
            await self._context.run(raise_marks, raised)
            await self._context.tasks.reload()

    async def _collect_task(self, task: Task, at: Instant) -> Counter[str]:
        """Delete what may go of one task. Return how many rows of each kind that was."""
        match task.state:
            case TaskState.DELETED:
                return await self._purge(task)
            case TaskState.PURGED if not await self._has_rows(task):
                return Counter()
            case _:
                # A request under way may have left rows of a task that was deleted. They are below
                # its mark, which holds even if the task is being added again just now.
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
