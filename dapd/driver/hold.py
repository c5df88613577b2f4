"""Hold a GET or POST until its job ends, which saves a poll if that is soon (ADR 0012)."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import TypeVar

import trio

from dapd.runtime.context import Context
from dapd.runtime.wake import JobName

Job = TypeVar("Job")


async def hold(
    context: Context,
    name: JobName,
    find: Callable[[], Awaitable[Job]],
    has_ended: Callable[[Job], bool],
    seconds: float,
) -> Job:
    """Return the job once it has ended, or as it is after ``seconds`` or when the daemon drains
    (I8). Raises what ``find`` raises.
    """
    ended = context.finished.listen(name)  # before ``find``: the job may end right after it
    try:
        job = await find()
        if has_ended(job) or context.draining.is_set():
            return job
        with trio.move_on_after(seconds):
            await ended.wait()
        return await find()
    finally:
        context.finished.forget(name)
