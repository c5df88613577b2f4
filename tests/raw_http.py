"""HTTP/1.1 by hand, byte for byte: requests to a real server, and answers to a real client."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

import trio


@dataclass(frozen=True, slots=True)
class Request:
    """A request as a server reads it; header names are in lower case."""

    method: str
    target: str
    headers: dict[str, str]
    body: bytes
    raw: bytes


async def read_request(stream: trio.SocketStream) -> Request | None:
    """The next request of a connection; ``None`` once the client has closed it."""
    raw = b""
    while b"\r\n\r\n" not in raw:
        piece = await _receive(stream)
        if not piece:
            return None
        raw += piece
    head, _, body = raw.partition(b"\r\n\r\n")
    first, headers = _parse_head(head)
    method, target, _ = first.split(" ")
    while len(body) < int(headers.get("content-length", "0")):
        piece = await _receive(stream)
        if not piece:
            return None
        raw += piece
        body += piece
    return Request(method, target, headers, body, raw)


def answer(status: int = 200, body: bytes = b"", **headers: str) -> bytes:
    """A whole answer; an underscore in a header's name stands for a hyphen."""
    lines = [f"HTTP/1.1 {status} X", f"Content-Length: {len(body)}"]
    lines += [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
    return "\r\n".join([*lines, "", ""]).encode() + body


@dataclass(frozen=True)
class Reply:
    """An answer as a client reads it; header names are in lower case."""

    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def problem(self) -> dict[str, Any]:
        """The problem document, which it must be."""
        assert self.headers["content-type"] == "application/problem+json", self
        document: dict[str, Any] = json.loads(self.body)
        return document

    @property
    def error(self) -> str | None:
        """The DAP error type of the problem document; ``None`` for ``about:blank``."""
        type_ = str(self.problem["type"])
        if type_ == "about:blank":
            return None
        urn, _, token = type_.rpartition(":")
        assert urn == "urn:ietf:params:ppm:dap:error"
        return token


def request(
    method: str, target: str, headers: dict[str, str] | None = None, body: bytes = b""
) -> bytes:
    """A whole request, after which the connection ends."""
    fields = {"Host": "dapd.test", "Connection": "close", "Content-Length": str(len(body))}
    lines = [f"{name}: {value}" for name, value in (fields | (headers or {})).items()]
    return "\r\n".join([f"{method} {target} HTTP/1.1", *lines, "", ""]).encode() + body


async def exchange(port: int, sent: bytes) -> bytes:
    """Send these bytes on a new connection; return everything that comes back."""
    async with await trio.open_tcp_stream("127.0.0.1", port) as stream:
        await stream.send_all(sent)
        return await read_all(stream)


async def read_all(stream: trio.SocketStream) -> bytes:
    """Read until the other end closes or resets the connection."""
    received = b""
    try:
        async for piece in stream:
            received += piece
    except trio.BrokenResourceError:
        pass
    return received


async def ask(
    port: int,
    method: str,
    target: str,
    headers: dict[str, str] | None = None,
    body: bytes = b"",
) -> Reply:
    """Send one request; return its answer."""
    return parse(await exchange(port, request(method, target, headers, body)))


def parse(raw: bytes) -> Reply:
    """The answer in these bytes, which end where it ends."""
    assert raw, "the connection ended without an answer"
    head, _, body = raw.partition(b"\r\n\r\n")
    first, headers = _parse_head(head)
    assert "transfer-encoding" not in headers, "the server knows the length of all it sends"
    assert len(body) == int(headers.get("content-length", "0")), raw
    return Reply(int(first.split(" ")[1]), headers, body)


def _parse_head(head: bytes) -> tuple[str, dict[str, str]]:
    """The first line, and the header fields."""
    first, *lines = head.decode("latin-1").split("\r\n")
    return first, {k.lower(): v.strip() for k, _, v in (line.partition(":") for line in lines)}


async def _receive(stream: trio.SocketStream) -> bytes:
    try:
        return bytes(await stream.receive_some())
    except trio.BrokenResourceError:
        return b""
