"""A counter that other tasks wait for without polling."""

from __future__ import annotations

import trio


class AwaitableCounter:
    """Only rises."""

    def __init__(self) -> None:
        self.value = 0
        self._risen = trio.Event()

    def add(self, count: int) -> None:
        self.value += count
        self._risen.set()
        self._risen = trio.Event()

    async def more(self, count: int) -> int:
        """Wait until the value is ``count`` higher than now; return it."""
        goal = self.value + count
        while self.value < goal:
            await self._risen.wait()
        return self.value
