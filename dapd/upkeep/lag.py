"""Measure event-loop lag: how late Trio wakes a task that sleeps, and so delays everything."""

from __future__ import annotations

import trio

from dapd.runtime.context import Context

_EVERY = 0.5


async def run(context: Context) -> None:
    """Measure the lag twice a second until the daemon drains."""
    while not context.draining.is_set():
        due = trio.current_time() + _EVERY
        with trio.move_on_at(due):
            await context.draining.wait()
            return
        context.metrics.loop_lag.observe(trio.current_time() - due)
