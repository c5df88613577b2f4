"""The aggregation job creator: waiting chunks become jobs, task by task.

Woken by uploads, by collections that ask for their batch, and when a report has waited long
enough. Left out: which chunks go together (``dapd.protocol.packing``).
"""

from __future__ import annotations

import secrets

import structlog
import trio

from dapd.commits.create_jobs import create, due_tasks
from dapd.datastore import chunks
from dapd.protocol.packing import Limits
from dapd.runtime.context import Context

_log = structlog.get_logger()
_FALLBACK_POLL = 5.0
_PAUSE = 0.02
"""Between two rounds, so that a stream of uploads is not answered by a transaction each."""


async def run(context: Context) -> None:
    """Until draining."""
    while not context.draining.is_set():
        wait = _FALLBACK_POLL
        try:
            wait = await create_due(context)
        except Exception:  # noqa: BLE001 - the loop's edge: logged, and tried again
            _log.exception("creator_failed", remedy="retried; if it stays, check the database")
        await context.chunks.wait(wait)
        if not context.draining.is_set():
            await trio.sleep(_PAUSE)


async def create_due(context: Context) -> float:
    """Make every job that is ripe; the seconds until the next may be."""
    at = context.instant()
    now = at.now
    latest = now + int(1000 * context.config.leader.retry_max)
    if await context.read(chunks.beyond, latest):
        await context.run(chunks.recall, latest, now)
    task_pks, next_at = await context.read(due_tasks, now)
    upcoming = [] if next_at is None else [next_at]
    made = 0
    for task in context.tasks.all():
        if task.task_pk not in task_pks:
            continue
        created = await context.run(create, task, _limits(context), at, secrets.token_bytes)
        made += created.jobs
        upcoming += [now] if created.more else []
        upcoming += [] if created.next_at is None else [created.next_at]
    if made:
        context.jobs.ring()
    return min([_FALLBACK_POLL, *(max(0, at - now) / 1000 for at in upcoming)])


def _limits(context: Context) -> Limits:
    leader = context.config.leader
    return Limits(leader.min_job_size, leader.max_job_size, int(1000 * leader.max_wait))
