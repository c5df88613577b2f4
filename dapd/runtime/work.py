"""Run work in the daemon's nursery, not in that of the request that asked for it (rule A2).

Once a request is read and admitted, its work reaches its commit even if the connection breaks. An
identical request joins the running work.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Hashable
from typing import Any, Generic, TypeVar, cast

import trio

from dapd.errors import Abort
from dapd.wording import count

T = TypeVar("T")


class Running(Generic[T]):
    """Work under way, for which any number of requests may wait."""

    def __init__(self) -> None:
        self._done = trio.Event()
        self._result: T | None = None
        self._error: Exception | None = None

    async def wait(self) -> T:
        """Wait for the work's result and return it; raise what the work raised."""
        await self._done.wait()
        if self._error is not None:
            raise self._error
        return cast("T", self._result)

    async def carry_out(self, step: Callable[[], Awaitable[T]]) -> None:
        """Run ``step`` and keep its result or exception; a cancelled step has neither."""
        try:
            self.answer(await step())
        except Exception as error:  # noqa: BLE001 - raised in all that wait, not in the nursery
            if not self._done.is_set():
                self._error = error
                self._done.set()

    def answer(self, result: T) -> None:
        """Give this result to all that wait, now or later; only the first answer counts."""
        if not self._done.is_set():
            self._result = result
            self._done.set()


class Work:
    """The work under way, at most ``limit`` pieces, which a reload may change.

    ``nursery`` is opened before the server and closed after it.
    """

    def __init__(self, nursery: trio.Nursery, limit: int) -> None:
        self._nursery = nursery
        self.limit = limit
        self._running: dict[Hashable, Running[Any]] = {}

    def __len__(self) -> int:
        return len(self._running)

    def joined(self, identity: Hashable) -> Running[Any] | None:
        """Return the running work of this identity, if there is any."""
        return self._running.get(identity)

    def answer(self, identity: Hashable, result: object) -> None:
        """Answer the requests that wait for running work before it ends; it runs on (rule A2)."""
        if running := self._running.get(identity):
            running.answer(result)

    def start(self, identity: Hashable, step: Callable[[], Awaitable[T]]) -> Running[T]:
        """Start ``step``, or join the work of the same identity: (task, kind, digest).

        Raises ``Abort`` with 503 if too much new work is under way.
        """
        if running := self._running.get(identity):
            return running
        if len(self._running) >= self.limit:
            raise Abort(
                None,
                f"the daemon works on {count(self.limit, 'request')} already; try again",
                status=503,
                headers={"Retry-After": "1"},
            )
        running = self._running[identity] = Running[T]()
        self._nursery.start_soon(self._run, identity, running, step)
        return running

    async def _run(
        self, identity: Hashable, running: Running[T], step: Callable[[], Awaitable[T]]
    ) -> None:
        try:
            await running.carry_out(step)
        finally:
            del self._running[identity]
