"""Takes away what of one task lies below its stored watermark, kind by kind, in bounded steps.

Rule D6. What may go is looked for beside the writer; each step of ``dapd.commits.garbage``
sees for itself whether it still may. The order of the kinds matters: jobs that wait for the Helper
end before their chunks go, chunks before their jobs, frozen collections before their batches.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence

import structlog

from dapd.commits.collections import expire_collection
from dapd.commits.garbage import (
    DroppedBatches,
    Freed,
    drop_batches,
    drop_chunks,
    drop_helper_jobs,
    drop_leader_jobs,
    forget_answers,
)
from dapd.commits.leader_jobs import expire_job
from dapd.datastore import (
    Tx,
    batches,
    chunks,
    collections,
    helper_jobs,
    leader_jobs,
    outstanding,
    share_jobs,
)
from dapd.datastore.expiry import PAGE, START, Found
from dapd.datastore.leases import Kind
from dapd.gc.pace import Pace
from dapd.protocol.batches import BucketRange, time_bucket
from dapd.protocol.task import MAX_INTEGER, Mark, Task
from dapd.runtime.context import Context

_log = structlog.get_logger()

ALL = Mark(MAX_INTEGER, MAX_INTEGER)
"""Above everything: the mark of a task that is deleted."""

Look = Callable[[Tx, int, int, Found], list[Found]]
"""(tx, task_pk, expired_before, after): the next rows that may go."""
Drop = Callable[[Tx, Sequence[int]], Freed]
"""Takes away the rows with these keys."""


class Sweep:
    """One sweep over one task; ``counts`` says what it has taken away."""

    def __init__(self, context: Context, task: Task, mark: Mark) -> None:
        self._context = context
        self._task = task
        self._mark = mark
        self.counts: Counter[str] = Counter()

    async def run(self) -> None:
        """All kinds that a task of this role and batch mode has; ended early by draining."""
        if self._task.is_leader:
            await self._leaders_work()
            await self._leader_rows()
        else:
            await self._helper_rows()
        if self._task.by_time:
            await self._buckets()
        else:
            await self._whole_batches()
        if self._mark is ALL:
            await self._remains()
        if self.counts.total():  # collections and the creator may wait for less now
            self._context.jobs.ring()
            self._context.chunks.ring()

    async def forget_answers(self, job_pks: Sequence[int]) -> None:
        """Take away what a Helper keeps of jobs for its Leader alone (rule A7)."""
        found = [Found(pk, pk, 0) for pk in job_pks]
        await self._take("answers", Pace(self._context), found, forget_answers)

    async def _leaders_work(self) -> None:
        """End what has waited for the Helper until now; it is counted, and its rows go later."""
        task_pk, before = self._task.task_pk, self._mark.before
        at = self._context.instant()
        now, safe = at.now, at.safe

        def expire_jobs(tx: Tx, job_pks: Sequence[int]) -> Freed:
            return Freed(sum(expire_job(tx, job_pk, now) > 0 for job_pk in job_pks))

        def expire_collections(tx: Tx, pks: Sequence[int]) -> Freed:
            ended = [expire_collection(tx, task_pk, pk, before, safe) for pk in pks]
            jobs: tuple[tuple[Kind, bytes], ...] = tuple(
                ("collection", job_id) for job_id in ended if job_id is not None
            )
            return Freed(len(jobs), waited_for=jobs)

        await self._page("expired_jobs", leader_jobs.expiring, expire_jobs)
        await self._page("expired_collections", collections.stuck, expire_collections)
        if jobs := self.counts["expired_jobs"]:
            _log.error(
                "jobs_expired",
                jobs=jobs,
                effect="their reports are counted as lost or dropped",
                remedy="see what `job_waits` said of them; a Helper that is away for long needs a "
                "longer report_expiry_age",
            )

    async def _leader_rows(self) -> None:
        task_pk, mark, now = self._task.task_pk, self._mark, self._context.now()

        def drop_past_chunks(tx: Tx, pks: Sequence[int]) -> Freed:
            return drop_chunks(tx, task_pk, pks, mark.before, now)

        def drop_jobs(tx: Tx, pks: Sequence[int]) -> Freed:
            return drop_leader_jobs(tx, task_pk, pks)

        def drop_collections(tx: Tx, most: int) -> int:
            return collections.drop(tx, task_pk, mark, most)

        await self._page("chunks", chunks.past, drop_past_chunks)
        await self._page("jobs", leader_jobs.past, drop_jobs)
        await self._repeat("collections", drop_collections)

    async def _helper_rows(self) -> None:
        task_pk, mark, now = self._task.task_pk, self._mark, self._context.now()

        def drop_jobs(tx: Tx, pks: Sequence[int]) -> Freed:
            return drop_helper_jobs(tx, task_pk, pks, mark.before, now)

        def drop_shares(tx: Tx, most: int) -> int:
            return share_jobs.drop(tx, task_pk, mark.ms, most)

        await self._page("jobs", helper_jobs.past, drop_jobs)
        await self._repeat("aggregate_shares", drop_shares)

    async def _buckets(self) -> None:
        task_pk = self._task.task_pk
        past = BucketRange(b"", time_bucket(self._mark.before))

        def drop_contributions(tx: Tx, most: int) -> int:
            return batches.drop_contributions(tx, task_pk, past, most)

        def drop_ranges(tx: Tx, most: int) -> int:
            return batches.drop_ranges(tx, task_pk, past, most)

        await self._repeat("contributions", drop_contributions)
        await self._repeat("collected_ranges", drop_ranges)

    async def _whole_batches(self) -> None:
        """C6: in the order of their ids, which says nothing, so all are looked at."""
        task_pk, before = self._task.task_pk, self._mark.before
        pace = Pace(self._context)
        after = b""
        while not self._stopped():
            found = await self._context.read(batches.newest_of_each, task_pk, after)
            if not found:
                return
            after = found[-1][0]
            expired = [batch_id for batch_id, newest in found if newest < before]
            while expired and not self._stopped():
                dropped = await pace.step(self._drop_batches, expired[: pace.rows], pace.rows)
                self.counts["contributions"] += dropped.rows
                expired = expired[dropped.done :]
                await pace.pause()

    def _drop_batches(self, tx: Tx, batch_ids: Sequence[bytes], most: int) -> DroppedBatches:
        return drop_batches(tx, self._task.task_pk, batch_ids, self._mark.before, most)

    async def _remains(self) -> None:
        """What of a deleted task has no time by which it would expire."""
        task_pk, now = self._task.task_pk, self._context.now()

        def drop_collections(tx: Tx, most: int) -> int:
            return collections.drop_all(tx, task_pk, now, most)

        def drop_batches(tx: Tx, most: int) -> int:
            return outstanding.drop_all(tx, task_pk, most)

        def drop_ranges(tx: Tx, most: int) -> int:
            return batches.drop_ranges(tx, task_pk, None, most)

        await self._repeat("collections", drop_collections)
        await self._repeat("batches", drop_batches)
        await self._repeat("collected_ranges", drop_ranges)

    async def _page(self, name: str, look: Look, drop: Drop) -> None:
        """Take away what ``look`` finds, a page after the other."""
        pace = Pace(self._context)
        after = START
        while not self._stopped():
            found = await self._context.read(look, self._task.task_pk, self._mark.before, after)
            await self._take(name, pace, found, drop)
            if len(found) < PAGE:
                return
            after = found[-1]

    async def _take(self, name: str, pace: Pace, found: Sequence[Found], drop: Drop) -> None:
        while found and not self._stopped():
            count = pace.cut(found)
            freed = await pace.step(drop, [row.pk for row in found[:count]])
            found = found[count:]
            self.counts[name] += freed.rows
            await self._follow(freed)
            await pace.pause()

    async def _repeat(self, name: str, drop: Callable[[Tx, int], int]) -> None:
        """Take away rows that need no looking for, until none is left."""
        pace = Pace(self._context)
        while not self._stopped():
            most = pace.rows
            dropped = await pace.step(drop, most)
            self.counts[name] += dropped
            if dropped < most:
                return
            await pace.pause()

    async def _follow(self, freed: Freed) -> None:
        """What a step must bring about once it is committed, and not before (rule D3)."""
        if freed.ids:
            replay = self._context.datastore.replay
            await self._context.compute(replay.forget, self._task.task_pk, freed.ids)
        for name in freed.waited_for:
            self._context.job_ended(name)

    def _stopped(self) -> bool:
        return self._context.draining.is_set()
