"""Wake-ups: loops and held requests wait for events, and poll only as a fallback."""

from __future__ import annotations

from collections import defaultdict

import trio

from dapd.datastore.leases import Kind

JobName = tuple[Kind, bytes | None]
"""A job's kind and its id; ``None`` stands for any id that no job has."""


class Wake:
    """A bell for one loop. A ring between two waits is not lost; many rings are one."""

    def __init__(self) -> None:
        self._event = trio.Event()

    def ring(self) -> None:
        self._event.set()

    async def wait(self, seconds: float) -> None:
        """Until the bell has rung since the last wait, or ``seconds`` have passed."""
        with trio.move_on_after(seconds):
            await self._event.wait()
        self._event = trio.Event()


class Finished:
    """Tells those who wait for a certain job in this process that its state has changed."""

    def __init__(self) -> None:
        self._events: defaultdict[JobName, trio.Event] = defaultdict(trio.Event)

    def listen(self, name: JobName) -> trio.Event:
        """Set at the next ``announce(name)``. Look at the state after this call, then wait."""
        return self._events[name]

    def announce(self, name: JobName) -> None:
        event = self._events.pop(name, None)
        if event is not None:
            event.set()

    def forget(self, name: JobName) -> None:
        """Nobody waits any more; drops the event if it was never announced."""
        event = self._events.get(name)
        if event is not None and not event.statistics().tasks_waiting:
            del self._events[name]

    def announce_all(self) -> None:
        """Draining: every held request is answered "not ready" now (I8)."""
        for name in list(self._events):
            self.announce(name)
