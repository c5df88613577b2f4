"""Wake loops and held requests when something happens, so that they poll only as a fallback."""

from __future__ import annotations

from collections import defaultdict

import trio

from dapd.protocol.states import Kind

JobName = tuple[Kind, bytes | None]
"""A job's kind and id; the id is ``None`` if a URL contained none that a job can have."""


class Wake:
    """A bell for one loop. A ring between two waits is not lost; many rings count as one."""

    def __init__(self) -> None:
        self._event = trio.Event()

    def ring(self) -> None:
        """Wake the loop, now or at its next wait."""
        self._event.set()

    async def wait(self, seconds: float) -> None:
        """Wait until the bell has rung since the last wait, or ``seconds`` have passed."""
        with trio.move_on_after(seconds):
            await self._event.wait()
        self._event = trio.Event()


class Finished:
    """Wakes the requests that are held for a job when its state has changed in this process."""

    def __init__(self) -> None:
        self._events: defaultdict[JobName, trio.Event] = defaultdict(trio.Event)

    def listen(self, name: JobName) -> trio.Event:
        """Return an event that the next ``announce(name)`` sets. Read the job's state after this
        call, then wait.
        """
        return self._events[name]

    def announce(self, name: JobName) -> None:
        """Wake all that listen to this job."""
        event = self._events.pop(name, None)
        if event is not None:
            event.set()

    def forget(self, name: JobName) -> None:
        """Drop the event of a caller that waits no more, unless others wait for it."""
        event = self._events.get(name)
        if event is not None and not event.statistics().tasks_waiting:
            del self._events[name]

    def announce_all(self) -> None:
        """Wake every held request, which then answers "not ready", as the daemon drains (I8)."""
        for name in list(self._events):
            self.announce(name)
