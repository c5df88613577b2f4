"""The creator: pack waiting chunks of reports into aggregation jobs, task by task.

Uploads and collections that ask for their batch wake it; otherwise it wakes when a report has
waited long enough. Left out: which chunks go together (``dapd.protocol.packing``).
"""

from __future__ import annotations

import secrets

import structlog
import trio

from dapd.commits.create_jobs import create, due_tasks, tasks_with_work
from dapd.datastore import chunks
from dapd.protocol.packing import Limits
from dapd.runtime.context import Context

_log = structlog.get_logger()
_FALLBACK_POLL = 5.0
_PAUSE = 0.02
"""Seconds between two rounds, so that each one serves many uploads of a stream."""
_TASKS_A_READ = 64


async def run(context: Context) -> None:
    """Create jobs whenever some are due, until the daemon drains."""
    while not context.draining.is_set():
        wait = _FALLBACK_POLL
        try:
            wait = await create_due(context)
        except Exception:  # noqa: BLE001 - the loop's edge: logged, and tried again
            _log.exception(
                "creator_failed",
                remedy="dapd tries again; if this repeats, run `dapd datastore check`",
            )
        await context.chunks.wait(wait)
        if not context.draining.is_set():
            await trio.sleep(_PAUSE)


async def create_due(context: Context) -> float:
    """Create every job that is due. Return in how many seconds the next may be."""
    at = context.instant()
    now = at.now
    latest = now + int(1000 * context.config.leader.retry_max)
    if await context.read(chunks.has_due_after, latest):
        await context.run(chunks.pull_forward, latest, now)
    limits = _limits(context)
    tasks, next_at = await context.read(due_tasks, now, limits, context.tasks.served)
    upcoming = [] if next_at is None else [next_at]
    made = 0
    for first in range(0, len(tasks), _TASKS_A_READ):
        some = tasks[first : first + _TASKS_A_READ]
        for task in await context.read(tasks_with_work, some, limits, at):
            created = await context.run(create, task, limits, at, secrets.token_bytes)
            made += created.jobs
            upcoming += [now] if created.more else []
            upcoming += [] if created.next_at is None else [created.next_at]
    if made:
        context.jobs.ring()
    return min([_FALLBACK_POLL, *(max(0, at - now) / 1000 for at in upcoming)])


def _limits(context: Context) -> Limits:
    leader = context.config.leader
    return Limits(leader.min_job_size, leader.max_job_size, int(1000 * leader.max_wait))
