"""A scripted HTTP peer on a real loopback socket: what does a client make of its answers?"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import trio


@dataclass(frozen=True, slots=True)
class Request:
    method: str
    target: str
    headers: dict[str, str]
    body: bytes


def answer(status: int = 200, body: bytes = b"", **headers: str) -> bytes:
    """A whole answer; an underscore in a header's name stands for a hyphen."""
    lines = [f"HTTP/1.1 {status} X", f"Content-Length: {len(body)}"]
    lines += [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
    return "\r\n".join([*lines, "", ""]).encode() + body


@dataclass
class Peer:
    """Answers each request with what ``script`` makes of it; empty bytes cut the connection.

    An answer shorter than its Content-Length is cut too.
    """

    script: Callable[[Request], bytes]
    requests: list[Request] = field(default_factory=list)
    connections: int = 0
    url: str = ""

    async def serve(self, nursery: trio.Nursery) -> str:
        """Listen on a free port until the nursery ends, and say at which URL."""
        listeners = await nursery.start(trio.serve_tcp, self._connection, 0)
        self.url = f"http://127.0.0.1:{listeners[0].socket.getsockname()[1]}"
        return self.url

    async def _connection(self, stream: trio.SocketStream) -> None:
        self.connections += 1
        buffer = b""
        while True:
            while b"\r\n\r\n" not in buffer:
                piece = await _receive(stream)
                if not piece:
                    return
                buffer += piece
            head, _, buffer = buffer.partition(b"\r\n\r\n")
            first, *lines = head.decode().split("\r\n")
            headers = {k.lower(): v.strip() for k, _, v in (line.partition(":") for line in lines)}
            length = int(headers.get("content-length", "0"))
            while len(buffer) < length:
                buffer += await _receive(stream)
            method, target, _ = first.split(" ")
            request = Request(method, target, headers, buffer[:length])
            buffer = buffer[length:]
            self.requests.append(request)
            reply = self.script(request)
            await stream.send_all(reply)
            if _cut(reply):
                return


async def _receive(stream: trio.SocketStream) -> bytes:
    try:
        return bytes(await stream.receive_some())
    except trio.BrokenResourceError:
        return b""


def _cut(reply: bytes) -> bool:
    head, _, body = reply.partition(b"\r\n\r\n")
    return not reply or f"Content-Length: {len(body)}".encode() not in head
