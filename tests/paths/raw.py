"""HTTP/1.1 by hand on a real socket: what the server really says, byte for byte."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

import trio


@dataclass(frozen=True)
class Reply:
    """One answer; header names are in lower case."""

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
    """A whole request, the last of its connection."""
    fields = {"Host": "dapd.test", "Connection": "close", "Content-Length": str(len(body))}
    lines = [f"{name}: {value}" for name, value in (fields | (headers or {})).items()]
    return "\r\n".join([f"{method} {target} HTTP/1.1", *lines, "", ""]).encode() + body


async def exchange(port: int, sent: bytes) -> bytes:
    """Everything that comes back on a connection of its own."""
    async with await trio.open_tcp_stream("127.0.0.1", port) as stream:
        await stream.send_all(sent)
        return await read_all(stream)


async def read_all(stream: trio.SocketStream) -> bytes:
    """Until the other end closes, however it does."""
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
    """One request and its answer."""
    return parse(await exchange(port, request(method, target, headers, body)))


def parse(raw: bytes) -> Reply:
    """The answer in these bytes, which end where it ends."""
    assert raw, "the connection ended without an answer"
    head, _, body = raw.partition(b"\r\n\r\n")
    first, *lines = head.decode("latin-1").split("\r\n")
    headers = {k.lower(): v.strip() for k, _, v in (line.partition(":") for line in lines)}
    assert "transfer-encoding" not in headers, "the server knows the length of all it sends"
    assert len(body) == int(headers.get("content-length", "0")), raw
    return Reply(int(first.split(" ")[1]), headers, body)
