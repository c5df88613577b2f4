"""A real HTTP proxy on a loopback socket, which a test puts between a Leader and its Helper.

It records every request, and does with each what a script says: pass it on, answer it for the
Helper, hold it, or cut the connection before or after the Helper has acted. Every request gets a
connection of its own to the Helper, so that an answer ends where its connection ends.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import trio

from tests.raw_http import Request, read_request


@dataclass(frozen=True)
class Pass:
    """The request goes to the Helper, its answer back."""


@dataclass(frozen=True)
class Cut:
    """The connection ends before the Helper has seen the request."""


@dataclass(frozen=True)
class LoseAnswer:
    """The Helper acts and answers; the connection ends before the answer is passed on."""


@dataclass(frozen=True)
class Answer:
    """These bytes are the answer; the Helper sees nothing."""

    raw: bytes


@dataclass(frozen=True)
class Hold:
    """The request waits for the event, then passes."""

    until: trio.Event


@dataclass(frozen=True)
class Drip:
    """The Helper acts; its answer is passed on one byte at a time, with so many seconds between."""

    pause: float


Action = Pass | Cut | LoseAnswer | Answer | Hold | Drip
Script = Callable[[Request], Action]


@dataclass(frozen=True)
class Exchange:
    """One request, what was done with it, and the Helper's own answer, if it was asked."""

    request: Request
    action: Action
    answer: bytes


@dataclass
class ScriptedProxy:
    """Passes everything on until ``script`` says otherwise; ``exchanges`` are in order of end."""

    target: int
    script: Script = lambda _: Pass()
    exchanges: list[Exchange] = field(default_factory=list)
    port: int = 0
    _changed: trio.Event = field(default_factory=trio.Event)

    async def serve(self, nursery: trio.Nursery) -> str:
        """Listen on a free port until the nursery ends; return the URL."""
        listeners = await nursery.start(trio.serve_tcp, self._connection, 0)
        self.port = listeners[0].socket.getsockname()[1]
        return self.url

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/"

    def of(self, method: str, resource: str) -> list[Exchange]:
        """The exchanges with this method whose path contains ``resource``."""
        return [
            each
            for each in self.exchanges
            if each.request.method == method and f"/{resource}" in each.request.target
        ]

    async def until(self, condition: Callable[[], bool]) -> None:
        """Wait until the exchanges are such that ``condition`` holds."""
        while not condition():
            await self._changed.wait()

    async def _connection(self, stream: trio.SocketStream) -> None:
        with trio.CancelScope() as scope:
            try:
                await self._exchange(stream)
            except (trio.BrokenResourceError, trio.ClosedResourceError):
                scope.cancel()  # either end may go at any time

    async def _exchange(self, stream: trio.SocketStream) -> None:
        request = await read_request(stream)
        if request is None:
            return
        action = self.script(request)
        reply = b""
        match action:
            case Answer(raw=reply):
                await stream.send_all(_closing(reply))
            case Cut():
                pass
            case Hold(until=event):
                await event.wait()
                reply = await self._ask(request.raw)
                await stream.send_all(reply)
            case Drip(pause=pause):
                reply = await self._ask(request.raw)
                for byte in reply:
                    await stream.send_all(bytes([byte]))
                    await trio.sleep(pause)
            case LoseAnswer():
                reply = await self._ask(request.raw)
            case Pass():
                reply = await self._ask(request.raw)
                await stream.send_all(reply)
        self.exchanges.append(Exchange(request, action, reply))
        self._changed.set()
        self._changed = trio.Event()
        await stream.aclose()

    async def _ask(self, raw: bytes) -> bytes:
        """The target's whole answer; empty if nothing listens there."""
        try:
            async with await trio.open_tcp_stream("127.0.0.1", self.target) as helper:
                await helper.send_all(_closing(raw))
                return b"".join([bytes(piece) async for piece in helper])
        except (OSError, trio.BrokenResourceError):
            return b""


def _closing(message: bytes) -> bytes:
    """The message with a header that makes it the last of its connection."""
    head, _, rest = message.partition(b"\r\n")
    lines, _, body = rest.partition(b"\r\n\r\n")
    kept = [line for line in lines.split(b"\r\n") if not line.lower().startswith(b"connection:")]
    return b"\r\n".join([head, *kept, b"Connection: close", b"", body])
