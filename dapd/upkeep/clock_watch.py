"""Store the safe clock's time every minute, and log an alarm while something holds it (rule D6)."""

from __future__ import annotations

import structlog
import trio

from dapd.advice.upkeep import SET_CLOCK
from dapd.datastore import safe_clock
from dapd.errors import DatastoreError
from dapd.runtime.clock import ClockState
from dapd.runtime.context import Context

_log = structlog.get_logger()
_EVERY = 60.0
_ALARM_EVERY = 600.0


async def run(context: Context) -> None:
    """Check and store the safe clock once a minute, and a last time when the daemon drains."""
    held = False
    while not context.draining.is_set():
        state = await look(context)
        if held and not state.held:
            _log.info("clock_followed", effect="dapd deletes what has expired meanwhile")
        held = state.held is not None
        with trio.move_on_after(_EVERY):
            await context.draining.wait()
    await look(context)


async def look(context: Context) -> ClockState:
    """Store the safe time and return the clock's state; log an alarm if the clock is held."""
    state = context.safe_clock.look()
    if state.held and context.seldom.due("clock_held", _ALARM_EVERY):
        _log.error(
            "clock_held",
            reason=state.held,
            effect="no data expires and no key changes",
            remedy=SET_CLOCK,
        )
    try:
        await context.run(safe_clock.store, state.stored)
    except DatastoreError as error:
        _log.error("clock_unstored", error=str(error), remedy="dapd tries again; check the disk")
    return state
