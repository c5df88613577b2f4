"""Serve one HTTP/1.1 connection: hypercorn's, corrected where it hangs, leaks or loses a response.

Left out: accepting connections and TLS (``dapd.server.listener``), and HTTP/2, which a proxy in
front can add.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import replace
from typing import Any

import h11
import trio
from hypercorn.config import Config as HypercornConfig
from hypercorn.events import Closed, Event, RawData
from hypercorn.protocol.events import Event as StreamEvent
from hypercorn.protocol.events import Response
from hypercorn.protocol.h11 import H11Protocol
from hypercorn.trio.task_group import TaskGroup, _handle
from hypercorn.trio.tcp_server import TCPServer
from hypercorn.typing import ConnectionState
from hypercorn.utils import parse_socket_addr

_SEND_SIZE = 1 << 16
"""Bytes of a response that a peer must accept within ``read_timeout``."""


class _Http1(H11Protocol):
    """hypercorn's HTTP/1.1, which never switches to HTTP/2 in clear text: after such a switch any
    client could leave a task of hypercorn's waiting for ever.
    """

    _discarded: trio.Event | None = None

    async def _check_protocol(self, event: h11.Request) -> None:
        """Ignore an upgrade, as a server may (RFC 9110, section 7.8)."""

    async def stream_send(self, event: StreamEvent) -> None:
        """Send; a response before the request's end says that it is the connection's last one."""
        if isinstance(event, Response) and self.connection.their_state is h11.SEND_BODY:
            event = replace(event, headers=[*event.headers, (b"connection", b"close")])
        await super().stream_send(event)

    async def handle(self, event: Event) -> None:
        """Handle what arrives; once ``discard_body`` is called, only wait for the body's end."""
        if self._discarded is None:
            await super().handle(event)
        elif isinstance(event, RawData):
            self.connection.receive_data(event.data)
            self._discard(self._discarded)
        else:
            self._discarded.set()

    async def discard_body(self) -> None:
        """Discard the rest of the request, until it ends or the connection does."""
        self._discarded = trio.Event()
        self._discard(self._discarded)
        await self._discarded.wait()

    def _discard(self, discarded: trio.Event) -> None:
        with suppress(h11.RemoteProtocolError):
            while isinstance(self.connection.next_event(), h11.Data):
                pass
        if self.connection.their_state is not h11.SEND_BODY:
            discarded.set()


class _Tasks(TaskGroup):
    """Runs the application, and delivers "disconnect" even if its queue of events is full.

    hypercorn waits for room in that queue, also for "disconnect", and also if the application has
    answered and reads no more: such a connection would stay open for ever.
    """

    async def spawn_app(
        self, app: Any, config: HypercornConfig, scope: Any, send: Any
    ) -> Callable[[Any], Awaitable[None]]:
        room: int = config.max_app_queue_size
        putting, reading = trio.open_memory_channel[dict[str, Any]](room)
        last: dict[str, Any] = {}

        async def put(event: dict[str, Any]) -> None:
            if event["type"].endswith(".disconnect"):
                last.update(event)
                putting.close()  # also ends a put that waits for room
            else:
                with suppress(trio.ClosedResourceError):
                    await putting.send(event)

        async def receive() -> dict[str, Any]:
            try:
                return await reading.receive()
            except trio.EndOfChannel:
                return last

        threads = trio.to_thread.run_sync, trio.from_thread.run
        self.spawn(_handle, app, config, scope, receive, send, *threads)
        return put


class Connection(TCPServer):
    """A connection of hypercorn's that speaks HTTP/1.1 alone.

    Unlike hypercorn's it ends when the peer has closed it, not after the keep-alive time. It drains
    a refused body before closing; otherwise a reset destroys our response (RFC 9112, section 9.6).
    """

    async def run(self) -> None:
        """Serve requests until either end closes the connection."""
        secure = isinstance(self.stream, trio.SSLStream)
        sock = self.stream.transport_stream.socket if secure else self.stream.socket
        try:
            async with _Tasks() as self._task_group:
                self.protocol = _Http1(  # type: ignore[assignment]
                    self.app,
                    self.config,
                    self.context,
                    self._task_group,
                    ConnectionState(self.state),
                    secure,
                    parse_socket_addr(sock.family, sock.getpeername()),
                    parse_socket_addr(sock.family, sock.getsockname()),
                    self.protocol_send,
                )
                await self.protocol.initiate()
                await self.idle_task.restart(self._task_group, self._idle_timeout)
                await self._read_data()
                await self.idle_task.stop()  # the peer has closed: no request can follow
        except OSError:
            pass  # the peer has gone
        finally:
            await self._close()

    async def protocol_send(self, event: Event) -> None:
        """Send; before closing on a refused body, discard what is left of it, for at most
        ``read_timeout``.
        """
        assert isinstance(self.protocol, _Http1)
        if isinstance(event, RawData):
            await self._send(event.data)
            return
        if isinstance(event, Closed) and self.protocol.connection.their_state is h11.SEND_BODY:
            with trio.move_on_after(self.config.read_timeout or 0):
                with suppress(AttributeError, trio.BrokenResourceError):  # TLS can't close one half
                    await self.stream.send_eof()
                await self.protocol.discard_body()
        await super().protocol_send(event)

    async def _send(self, data: bytes) -> None:
        """Send, but unlike hypercorn give up a peer that doesn't read, at the latest when the grace
        period ends (I8).
        """
        async with self.send_lock:
            try:
                for start in range(0, len(data), _SEND_SIZE):
                    with trio.fail_after(self.config.read_timeout or 0):
                        await self.stream.send_all(data[start : start + _SEND_SIZE])
            except trio.Cancelled:
                await trio.aclose_forcefully(self.stream)  # nothing may follow half a response
                raise
            except (trio.BrokenResourceError, trio.ClosedResourceError, trio.TooSlowError):
                await trio.aclose_forcefully(self.stream)
                await self.protocol.handle(Closed())
