"""The listener: what an application does that none may do."""

from __future__ import annotations

import socket
from typing import Any

import pytest
import trio

from dapd.runtime.clock import SystemClock
from dapd.server.listen import Server, listening
from tests.paths import raw


async def test_every_address_is_that_of_either_protocol() -> None:
    """A container's port is published to its IPv4 address, whatever else it has."""
    async with listening(("::", 0), "server") as listeners:
        families = {each.socket.family for each in listeners}
    assert families == {socket.AF_INET, *([socket.AF_INET6] if socket.has_dualstack_ipv6() else [])}


async def test_what_hypercorn_says_of_an_application_is_logged_as_all_else(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """The front catches what handlers raise; what it fails to catch is not lost either, and says
    nothing of who asked.
    """

    async def broken(*_: Any) -> None:
        raise RuntimeError("a fault of the front's")

    async with listening(("127.0.0.1", 0), "server") as listeners, trio.open_nursery() as nursery:
        server = Server(broken, listeners, lambda: 5.0, SystemClock())
        port = listeners[0].socket.getsockname()[1]
        with trio.fail_after(10):
            nursery.start_soon(server.run)
            assert (await raw.ask(port, "GET", "/")).status == 500
            await server.close_listeners()
    [record] = caplog.records
    assert (record.name, record.levelname) == ("hypercorn.error", "ERROR")
    assert "a fault of the front's" in caplog.text
    assert "127.0.0.1" not in caplog.text


async def test_who_still_sends_a_body_that_was_refused_gets_the_answer() -> None:
    """A Leader whose job is too large must be told so, not meet a reset for ever."""

    async def refusing(_scope: Any, _receive: Any, send: Any) -> None:
        head = {
            "type": "http.response.start",
            "status": 413,
            "headers": [(b"content-length", b"0")],
        }
        await send(head)
        await send({"type": "http.response.body", "body": b""})

    async with listening(("127.0.0.1", 0), "server") as listeners, trio.open_nursery() as nursery:
        server = Server(refusing, listeners, lambda: 5.0, SystemClock())
        port = listeners[0].socket.getsockname()[1]
        with trio.fail_after(10):
            nursery.start_soon(server.run)
            more_than_sockets_hold = bytes(32 << 20)
            assert (await raw.ask(port, "POST", "/", body=more_than_sockets_hold)).status == 413
            await server.close_listeners()
