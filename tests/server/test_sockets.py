"""The listener: addresses, slow peers, refused bodies, and applications that misbehave."""

from __future__ import annotations

import socket
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import trio

from dapd.runtime.clock import SystemClock
from dapd.server.listener import Server, clear_text
from dapd.server.sockets import listening, reserved_port
from tests import raw_http
from tests.certificates import Authority


async def test_every_address_is_that_of_either_protocol() -> None:
    """``::`` takes IPv4 too: a container's port is published to its IPv4 address."""
    async with listening(("::", 0), "server") as listeners:
        families = {each.socket.family for each in listeners}
    assert families == {socket.AF_INET, *([socket.AF_INET6] if socket.has_dualstack_ipv6() else [])}


async def test_a_reserved_port_is_nobody_elses_between_one_listener_and_the_next() -> None:
    """Whoever connects meanwhile is refused, and whoever asks for any port gets another one."""
    with reserved_port() as port:
        for _ in range(2):
            with pytest.raises(OSError, match="refused"), socket.socket() as sock:
                sock.connect(("127.0.0.1", port))
            async with (
                listening(("127.0.0.1", port), "server"),
                listening(("127.0.0.1", 0), "admin") as [other],
            ):
                assert other.socket.getsockname()[1] != port
                socket.create_connection(("127.0.0.1", port)).close()


async def test_what_hypercorn_says_of_an_application_is_logged_as_all_else(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """An exception that the front fails to catch is in our log, without the client's address."""

    async def broken(*_: Any) -> None:
        raise RuntimeError("a fault of the front's")

    async with listening(("127.0.0.1", 0), "server") as listeners, trio.open_nursery() as nursery:
        server = Server(broken, listeners, lambda: 5.0, SystemClock())
        port = listeners[0].socket.getsockname()[1]
        with trio.fail_after(60):
            nursery.start_soon(server.run)
            assert (await raw_http.ask(port, "GET", "/")).status == 500
            await server.close_listeners()
    [record] = caplog.records
    assert (record.name, record.levelname) == ("hypercorn.error", "ERROR")
    assert "a fault of the front's" in caplog.text
    assert "127.0.0.1" not in caplog.text


@asynccontextmanager
async def refusing(*, late: bool = False) -> AsyncIterator[int]:
    """Serve 413 without reading a body, or once no more of it fits; yield the port."""

    async def app(_scope: Any, _receive: Any, send: Any) -> None:
        if late:
            await trio.testing.wait_all_tasks_blocked()
        headers = [(b"content-length", b"0")]
        await send({"type": "http.response.start", "status": 413, "headers": headers})
        await send({"type": "http.response.body", "body": b""})

    async with listening(("127.0.0.1", 0), "server") as listeners, trio.open_nursery() as nursery:
        server = Server(app, listeners, lambda: 3600.0, SystemClock())
        with trio.fail_after(60):
            nursery.start_soon(server.run)
            yield listeners[0].socket.getsockname()[1]
            await server.close_listeners()


async def test_who_still_sends_a_body_that_was_refused_gets_the_answer() -> None:
    """A Leader whose job is too large must get the 413, not a reset at every send."""
    async with refusing() as port:
        more_than_sockets_hold = bytes(32 << 20)
        assert (await raw_http.ask(port, "POST", "/", body=more_than_sockets_hold)).status == 413


@pytest.mark.parametrize("end", ["body", "connection", "nonsense"])
async def test_a_refused_body_keeps_no_connection_beyond_its_end(end: str) -> None:
    """The server closes the connection when the body ends, the sender closes, or the body is no
    longer HTTP.
    """
    chunked = "POST / HTTP/1.1\r\nHost: dapd.test\r\nTransfer-Encoding: chunked\r\n\r\n"
    rest = {"body": b"4\r\nmore\r\n0\r\n\r\n", "connection": b"4\r\nmo", "nonsense": b"?\r\n"}
    async with refusing() as port, await trio.open_tcp_stream("127.0.0.1", port) as stream:
        await stream.send_all(chunked.encode())
        answer = await stream.receive_some()
        assert answer.startswith(b"HTTP/1.1 413 ")
        assert b"connection: close" in answer, "no other request may come on it"
        await stream.send_all(rest[end])
        if end == "connection":
            await stream.send_eof()
        assert await raw_http.read_all(stream) == b""


@pytest.mark.parametrize("chunks", [9, 10, 11, 1000])
async def test_a_refused_body_in_many_pieces_keeps_no_connection(chunks: int) -> None:
    """The application reads none of it, and its queue has no room for all of it."""
    head = raw_http.request("POST", "/", {"Transfer-Encoding": "chunked"})
    head = head.replace(b"Content-Length: 0\r\n", b"")
    async with (
        refusing(late=True) as port,
        await trio.open_tcp_stream("127.0.0.1", port) as stream,
    ):
        await stream.send_all(head + b"1\r\nx\r\n" * chunks)
        assert (await raw_http.read_all(stream)).startswith(b"HTTP/1.1 413 ")


@pytest.mark.parametrize("end", ["grace", "patience"])
@pytest.mark.parametrize("secure", [False, True])
async def test_i8_who_does_not_read_an_answer_holds_up_no_stop(
    tmp_path: Path, end: str, *, secure: bool
) -> None:
    """The end of the grace period ends a send, and so does ``read_timeout``."""
    authority = Authority(tmp_path)
    issued = authority.issue()
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(issued.chain, issued.key)
    sending, stopped = trio.Event(), trio.Event()

    async def app(_scope: Any, _receive: Any, send: Any) -> None:
        body = bytes(64 << 20)
        headers = [(b"content-length", str(len(body)).encode())]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        sending.set()
        await send({"type": "http.response.body", "body": body})

    def read_timeout() -> float:
        return 0.01 if end == "patience" and sending.is_set() else 3600.0

    grace = trio.CancelScope()
    async with listening(("127.0.0.1", 0), "server") as listeners, trio.open_nursery() as nursery:
        tls = (lambda: context) if secure else clear_text
        server = Server(app, listeners, read_timeout, SystemClock(), tls)

        async def serve() -> None:
            with grace:
                await server.run()
            stopped.set()

        nursery.start_soon(serve)
        plain = await trio.open_tcp_stream(*listeners[0].socket.getsockname()[:2])
        stream: trio.abc.Stream = plain
        if secure:
            trusting = ssl.create_default_context(cafile=authority.file)
            stream = trio.SSLStream(plain, trusting, server_hostname="127.0.0.1")
        async with plain:
            await stream.send_all(raw_http.request("GET", "/"))
            await stream.receive_some(1)
            await sending.wait()
            if end == "grace":
                await trio.testing.wait_all_tasks_blocked()
                grace.cancel()
            else:
                await server.close_listeners()
            with trio.move_on_after(60):
                await stopped.wait()
            assert stopped.is_set()
            nursery.cancel_scope.cancel()
