"""The clock's operations: show the safe clock, and let it follow again (rule D6)."""

from __future__ import annotations

import msgspec

from dapd.admin.operation import Moment, Nothing, Operation, rfc3339
from dapd.datastore import safe_clock
from dapd.runtime.clock import ClockState
from dapd.runtime.context import Context


class PeerClock(msgspec.Struct, frozen=True):
    """A peer's clock; ``ahead`` is how many seconds it is ahead of this machine's."""

    origin: str
    ahead: float


class ClockView(msgspec.Struct, frozen=True):
    """The clocks. ``held`` says why the safe clock is held, ``null`` while it follows."""

    now: Moment
    safe: Moment
    held: str | None
    peers: tuple[PeerClock, ...]


def view(state: ClockState) -> ClockView:
    """Return the clock's state as a response."""
    peers = tuple(PeerClock(origin, ms / 1000) for origin, ms in sorted(state.offsets.items()))
    return ClockView(rfc3339(state.now), rfc3339(state.safe), state.held, peers)


async def show(context: Context, _: Nothing) -> ClockView:
    """Show this machine's clock, the safe clock, and the peers' clocks."""
    return view(context.safe_clock.look())


async def accept(context: Context, _: Nothing) -> ClockView:
    """Confirm that this machine's clock is correct; the safe clock follows it again."""
    context.safe_clock.accept()
    state = context.safe_clock.look()
    await context.run(safe_clock.store, state.stored)
    return view(state)


SHOW = Operation("clock_show", "GET", "/api/v1/clock", Nothing, ClockView, show)
ACCEPT = Operation("clock_accept", "POST", "/api/v1/clock/accept", Nothing, ClockView, accept)
