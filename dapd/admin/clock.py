"""The clock's operations: what the safe clock shows, and that it may follow again (rule D6)."""

from __future__ import annotations

import msgspec

from dapd.admin.operation import Moment, Nothing, Operation, rfc3339
from dapd.datastore import safe_clock
from dapd.runtime.clock import ClockState
from dapd.runtime.context import Context


class PeerClock(msgspec.Struct, frozen=True):
    """``ahead`` is how many seconds the peer's clock is before this machine's."""

    origin: str
    ahead: float


class ClockView(msgspec.Struct, frozen=True):
    """``held`` says why the safe clock stands, ``null`` while it follows the machine's."""

    now: Moment
    safe: Moment
    held: str | None
    peers: tuple[PeerClock, ...]


def view(state: ClockState) -> ClockView:
    """The state as commands see it."""
    peers = tuple(PeerClock(origin, ms / 1000) for origin, ms in sorted(state.offsets.items()))
    return ClockView(rfc3339(state.now), rfc3339(state.safe), state.held, peers)


async def show(context: Context, _: Nothing) -> ClockView:
    """Both clocks, and those of the peers."""
    return view(context.safe_clock.look())


async def accept(context: Context, _: Nothing) -> ClockView:
    """The machine's clock is right: the safe one goes on from there, also after a restart."""
    context.safe_clock.accept()
    state = context.safe_clock.look()
    await context.run(safe_clock.store, state.stored)
    return view(state)


SHOW = Operation("clock_show", "GET", "/api/v1/clock", Nothing, ClockView, show)
ACCEPT = Operation("clock_accept", "POST", "/api/v1/clock/accept", Nothing, ClockView, accept)
