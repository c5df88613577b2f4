"""A scripted HTTP server on a real loopback socket: what does a client make of its answers?"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import trio

from tests.raw_http import Request, read_request


@dataclass
class ScriptedServer:
    """Answers each request with what ``script`` makes of it; empty bytes cut the connection.

    An answer shorter than its Content-Length is cut too.
    """

    script: Callable[[Request], bytes]
    requests: list[Request] = field(default_factory=list)
    connections: int = 0
    url: str = ""

    async def serve(self, nursery: trio.Nursery) -> str:
        """Listen on a free port until the nursery ends; return the URL."""
        listeners = await nursery.start(trio.serve_tcp, self._connection, 0)
        self.url = f"http://127.0.0.1:{listeners[0].socket.getsockname()[1]}"
        return self.url

    async def _connection(self, stream: trio.SocketStream) -> None:
        self.connections += 1
        while request := await read_request(stream):
            self.requests.append(request)
            reply = self.script(request)
            await stream.send_all(reply)
            if _cut(reply):
                return


def _cut(reply: bytes) -> bool:
    head, _, body = reply.partition(b"\r\n\r\n")
    return not reply or f"Content-Length: {len(body)}".encode() not in head
