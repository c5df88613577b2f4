"""A count that others wait for, without looking again and again."""

from __future__ import annotations

import trio


class Tally:
    """Only rises."""

    def __init__(self) -> None:
        self.value = 0
        self._risen = trio.Event()

    def add(self, count: int) -> None:
        self.value += count
        self._risen.set()
        self._risen = trio.Event()

    async def more(self, count: int) -> int:
        """Wait until it is so much higher than now; the value then."""
        goal = self.value + count
        while self.value < goal:
            await self._risen.wait()
        return self.value
