"""Delete what is below a task's stored watermark, kind by kind, in bounded steps.

Rule D6. A reading transaction finds the rows that may go; each step of ``dapd.commits.garbage``
checks again that they still may. The order of the kinds matters: jobs that wait for the Helper end
before their chunks are deleted, chunks go before their jobs, frozen collections before their
batches.
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
    drop_buckets,
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
    expiry,
    helper_jobs,
    leader_jobs,
    outstanding,
    share_jobs,
    suspects,
)
from dapd.datastore.expiry import PAGE, START, Found
from dapd.gc.pace import Pace
from dapd.protocol.batches import BucketRange, time_bucket
from dapd.protocol.states import Kind
from dapd.protocol.task import MAX_INTEGER, Mark, Task
from dapd.runtime.context import Context
from dapd.runtime.deletion import delete_job

_log = structlog.get_logger()

_MOST_DELETIONS = 100
"""The most jobs that one sweep deletes at the Helper."""
ALL = Mark(MAX_INTEGER, MAX_INTEGER)
"""The mark above everything, for a task that is deleted."""

Look = Callable[[Tx, int, int, Found], list[Found]]
"""Returns the next rows that may be deleted: (tx, task_pk, expired_before, after)."""
Drop = Callable[[Tx, Sequence[int]], Freed]
"""Deletes the rows with these keys."""


def may_find(tx: Tx, task: Task, mark: Mark) -> bool:
    """Return whether a sweep over the task may find anything."""
    bucket = time_bucket(mark.before) if task.by_time else b""
    return expiry.has_expired(tx, task.task_pk, mark, bucket, _forgotten_before(task, mark))


def _forgotten_before(task: Task, mark: Mark) -> int:
    """Return the time below which a Helper forgets the ids of expired batches: they expired an age
    ago.
    """
    age = task.settings.report_expiry_age
    return 0 if age is None else mark.before - -(-age // task.configuration.time_precision)


class Sweep:
    """One sweep over one task; ``counts`` has the number of deleted rows of each kind."""

    def __init__(self, context: Context, task: Task, mark: Mark) -> None:
        self._context = context
        self._task = task
        self._mark = mark
        self._deletions_left = _MOST_DELETIONS
        self.counts: Counter[str] = Counter()

    async def run(self) -> None:
        """Delete all kinds of rows that a task of this role and batch mode has; stop early when
        draining.
        """
        if self._task.is_leader:
            await self._expire_leader_work()
            await self._drop_leader_rows()
        else:
            await self._drop_helper_rows()
        if self._task.by_time:
            await self._drop_buckets()
        else:
            await self._drop_whole_batches()
        if self._mark is ALL:
            await self._drop_timeless_rows()
        if self.counts.total():  # collections and the creator may wait for less now
            self._context.jobs.ring()
            self._context.chunks.ring()

    async def forget_answers(self, job_pks: Sequence[int]) -> None:
        """Delete what a Helper keeps of these jobs only to repeat its answer (rule A7)."""
        found = [Found(pk, pk, 0) for pk in job_pks]
        await self._drop_found("answers", Pace(self._context), found, forget_answers)

    async def _expire_leader_work(self) -> None:
        """End expired jobs and collections that still wait, and count their reports as lost or
        dropped; their rows are deleted later.
        """
        task_pk, before = self._task.task_pk, self._mark.before
        at = self._context.instant()
        now, safe = at.now, at.safe

        def expire_jobs(tx: Tx, job_pks: Sequence[int]) -> Freed:
            known = {job_pk: leader_jobs.location(tx, job_pk) for job_pk in job_pks}
            ended = [job_pk for job_pk in job_pks if expire_job(tx, job_pk, now)]
            return Freed(len(ended), locations=tuple(filter(None, map(known.get, ended))))

        def expire_collections(tx: Tx, pks: Sequence[int]) -> Freed:
            ended = [expire_collection(tx, task_pk, pk, before, safe) for pk in pks]
            jobs: tuple[tuple[Kind, bytes], ...] = tuple(
                ("collection", job_id) for job_id in ended if job_id is not None
            )
            return Freed(len(jobs), waited_for=jobs)

        await self._drop_pages("expired_jobs", leader_jobs.expiring, expire_jobs)
        await self._drop_pages("expired_collections", collections.expiring, expire_collections)
        if jobs := self.counts["expired_jobs"]:
            _log.error(
                "jobs_expired",
                jobs=jobs,
                effect="their reports are counted as lost or dropped",
                remedy="see these jobs' `job_waits` lines; if the Helper can be away for long, set "
                "a longer report_expiry_age",
            )

    async def _drop_leader_rows(self) -> None:
        task_pk, mark, now = self._task.task_pk, self._mark, self._context.now()

        def drop_past_chunks(tx: Tx, pks: Sequence[int]) -> Freed:
            return drop_chunks(tx, task_pk, pks, mark.before, now)

        def drop_jobs(tx: Tx, pks: Sequence[int]) -> Freed:
            return drop_leader_jobs(tx, task_pk, pks)

        def drop_collections(tx: Tx, most: int) -> int:
            return collections.drop(tx, task_pk, mark, most)

        await self._drop_pages("chunks", chunks.past, drop_past_chunks)
        await self._drop_pages("jobs", leader_jobs.past, drop_jobs)
        await self._drop_all("collections", drop_collections)

    async def _drop_helper_rows(self) -> None:
        task_pk, mark, now = self._task.task_pk, self._mark, self._context.now()

        def drop_jobs(tx: Tx, pks: Sequence[int]) -> Freed:
            return drop_helper_jobs(tx, task_pk, pks, mark.before, now)

        def drop_shares(tx: Tx, most: int) -> int:
            return share_jobs.drop(tx, task_pk, mark.ms, most)

        await self._drop_pages("jobs", helper_jobs.past, drop_jobs)
        await self._drop_all("aggregate_shares", drop_shares)

    async def _drop_buckets(self) -> None:
        task_pk = self._task.task_pk
        past = BucketRange(b"", time_bucket(self._mark.before))

        def drop_contributions(tx: Tx, most: int) -> int:
            return drop_buckets(tx, task_pk, past, most)

        def drop_ranges(tx: Tx, most: int) -> int:
            return batches.drop_ranges(tx, task_pk, past, most)

        await self._drop_all("contributions", drop_contributions)
        await self._drop_all("collected_ranges", drop_ranges)

    async def _drop_whole_batches(self) -> None:
        """Delete expired leader-selected batches (C6)."""
        task_pk, before = self._task.task_pk, self._mark.before
        pace = Pace(self._context)
        after: Found | None = START
        while after is not None and not self._stopped():
            expired, after = await self._context.read(batches.expired, task_pk, before, after)
            while expired and not self._stopped():
                dropped = await pace.step(self._drop_batches, expired[: pace.rows], pace.rows)
                self.counts["contributions"] += dropped.rows
                expired = expired[dropped.done :]
                await pace.pause()
        if not self._task.is_leader:
            await self._drop_expired_ids()

    def _drop_batches(self, tx: Tx, batch_ids: Sequence[bytes], most: int) -> DroppedBatches:
        return drop_batches(tx, self._task, batch_ids, self._mark.before, most)

    async def _drop_expired_ids(self) -> None:
        """Forget the ids of batches that expired an age ago at a Helper; no job comes as late."""
        task_pk, before = self._task.task_pk, _forgotten_before(self._task, self._mark)

        def drop_ranges(tx: Tx, most: int) -> int:
            return batches.drop_expired(tx, task_pk, before, most)

        await self._drop_all("collected_ranges", drop_ranges)

    async def _drop_timeless_rows(self) -> None:
        """Delete the rows of a deleted task that have no time by which they would expire."""
        task_pk, now = self._task.task_pk, self._context.now()

        def drop_collections(tx: Tx, most: int) -> int:
            return collections.drop_all(tx, task_pk, now, most)

        def drop_batches(tx: Tx, most: int) -> int:
            return outstanding.drop_all(tx, task_pk, most)

        def drop_ranges(tx: Tx, most: int) -> int:
            return batches.drop_ranges(tx, task_pk, None, most)

        await self._context.run(suspects.drop_all, task_pk)
        await self._drop_all("collections", drop_collections)
        await self._drop_all("batches", drop_batches)
        await self._drop_all("collected_ranges", drop_ranges)

    async def _drop_pages(self, name: str, look: Look, drop: Drop) -> None:
        """Drop the rows that ``look`` finds, page by page."""
        pace = Pace(self._context)
        after = START
        while not self._stopped():
            found = await self._context.read(look, self._task.task_pk, self._mark.before, after)
            await self._drop_found(name, pace, found, drop)
            if len(found) < PAGE:
                return
            after = found[-1]

    async def _drop_found(self, name: str, pace: Pace, found: Sequence[Found], drop: Drop) -> None:
        """Drop these rows, in as many steps as their sizes need."""
        while found and not self._stopped():
            count = pace.cut(found)
            freed = await pace.step(drop, [row.pk for row in found[:count]])
            found = found[count:]
            self.counts[name] += freed.rows
            await self._after_commit(freed)
            await pace.pause()

    async def _drop_all(self, name: str, drop: Callable[[Tx, int], int]) -> None:
        """Call ``drop``, which finds the rows itself, until none is left."""
        pace = Pace(self._context)
        while not self._stopped():
            most = pace.rows
            dropped = await pace.step(drop, most)
            self.counts[name] += dropped
            if dropped < most:
                return
            await pace.pause()

    async def _after_commit(self, freed: Freed) -> None:
        """Forget the report ids, wake held requests, and delete jobs at the Helper, once the step
        is committed (rule D3).
        """
        if freed.ids:
            replay = self._context.datastore.replay
            await self._context.compute(replay.forget, self._task.task_pk, freed.ids)
        for name in freed.waited_for:
            self._context.job_ended(name)
        for location in freed.locations:
            await self._delete_at_helper(location)

    async def _delete_at_helper(self, location: str) -> None:
        """Let the Helper know that it can clean up. Left out: jobs of a task that is not served,
        and those beyond the first failure or the bound of a sweep, which must not take long. The
        Helper deletes such a job itself once that has expired.
        """
        task = self._context.tasks.served(self._task.task_pk)
        if task is None or task.aggregator_token is None or not self._deletions_left:
            return
        peer = self._context.peers.at(task.configuration.helper_aggregator_endpoint)
        if peer.try_acquire():
            try:
                deleted = await delete_job(self._context, location, task.aggregator_token)
            finally:
                peer.release()
            self._deletions_left = self._deletions_left - 1 if deleted else 0

    def _stopped(self) -> bool:
        return self._context.draining.is_set()
