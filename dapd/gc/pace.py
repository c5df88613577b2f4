"""Pace deletions: steps so short, with pauses so long, that they hardly delay uploads.

Each step is one transaction. How many rows it deletes follows from how long the last step occupied
the writer, commit included.
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
"""How long a step should occupy the writer at most."""
STEP_BYTES = 4 << 20
"""How much a step may delete, unless it is a single row."""
_FIRST_ROWS = 16
_MOST_ROWS = 4096
_PAUSE_FACTOR = 4
"""A pause is so many times as long as its step: deletions take a fifth of the writer's time."""


class Pace:
    """Runs the steps of one kind of deletion; the next one may delete ``rows`` rows."""

    def __init__(self, context: Context, *, timer: Callable[[], float] = time.perf_counter) -> None:
        self._context = context
        self._timer = timer
        self._took = 0.0
        self.rows = _FIRST_ROWS

    async def step(
        self, fn: Callable[Concatenate[Tx, P], T], *args: P.args, **kwargs: P.kwargs
    ) -> T:
        """Run one transaction and adapt ``rows`` to its time; the caller then calls ``pause``."""
        begun = 0.0

        def timed(tx: Tx, /, *args: P.args, **kwargs: P.kwargs) -> T:
            nonlocal begun
            begun = self._timer()
            return fn(tx, *args, **kwargs)

        timed.__name__ = fn.__name__  # the label under which its duration is recorded
        result = await self._context.run(timed, *args, **kwargs)
        self._took = self._timer() - begun
        self.learn(self._took)
        return result

    def learn(self, seconds: float) -> None:
        """Halve or double ``rows`` if the last step took too long or was very short."""
        if seconds > STEP_SECONDS:
            self.rows = max(1, self.rows // 2)
        elif seconds < STEP_SECONDS / 4:
            self.rows = min(_MOST_ROWS, self.rows * 2)

    async def pause(self) -> None:
        """Leave the writer to others for a while, or until the daemon drains."""
        with trio.move_on_after(_PAUSE_FACTOR * self._took):
            await self._context.draining.wait()

    def cut(self, found: Sequence[Found]) -> int:
        """Return how many of ``found`` the next step deletes; at least one."""
        size = 0
        for count, row in enumerate(found[: self.rows]):
            size += row.size
            if count and size > STEP_BYTES:
                return count
        return min(self.rows, len(found))
