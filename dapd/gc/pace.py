"""Deletes in steps so short, with pauses so long, that uploads hardly notice.

Each step is one transaction. How many rows it takes follows from how long the last one held the
writer, commit included.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Concatenate, ParamSpec, TypeVar

import trio

from dapd.datastore import Tx
from dapd.datastore.expiry import Found
from dapd.runtime.context import Context

P = ParamSpec("P")
T = TypeVar("T")

STEP_SECONDS = 0.02
"""How long a step may hold the writer."""
STEP_BYTES = 4 << 20
"""How much a step may delete, unless it is one row."""
_FIRST_ROWS = 16
_MOST_ROWS = 4096
_PAUSE = 4
"""Times what the step took: a fifth of the writer's time at most."""


class Pace:
    """The steps of one kind of deletion; ``rows`` is how many the next one may take."""

    def __init__(self, context: Context) -> None:
        self._context = context
        self._took = 0.0
        self.rows = _FIRST_ROWS

    async def step(
        self, fn: Callable[Concatenate[Tx, P], T], *args: P.args, **kwargs: P.kwargs
    ) -> T:
        """Run one transaction and learn from it; the caller pauses once it is done with it."""
        begun = 0.0

        def timed(tx: Tx, /, *args: P.args, **kwargs: P.kwargs) -> T:
            nonlocal begun
            begun = time.perf_counter()
            return fn(tx, *args, **kwargs)

        timed.__name__ = fn.__name__  # as its duration is recorded
        result = await self._context.run(timed, *args, **kwargs)
        self._took = time.perf_counter() - begun
        self.learn(self._took)
        return result

    def learn(self, seconds: float) -> None:
        """A step took so long: the next one takes half as many rows, or twice as many."""
        if seconds > STEP_SECONDS:
            self.rows = max(1, self.rows // 2)
        elif seconds < STEP_SECONDS / 4:
            self.rows = min(_MOST_ROWS, self.rows * 2)

    async def pause(self) -> None:
        """Let others have the writer; ended by draining."""
        with trio.move_on_after(_PAUSE * self._took):
            await self._context.draining.wait()

    def cut(self, found: Sequence[Found]) -> int:
        """How many of ``found`` the next step takes: one at least."""
        size = 0
        for count, row in enumerate(found[: self.rows]):
            size += row.size
            if count and size > STEP_BYTES:
                return count
        return min(self.rows, len(found))
