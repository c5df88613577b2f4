"""Serves an ASGI application over HTTP with hypercorn, one connection apart from another.

hypercorn's own ``serve`` ends as a whole when a connection raises what it did not expect (its
#225: one websocket upgrade with trailing bytes). Here each connection is an island: what it raises
is logged, and ends that connection alone. The public listener is one of TCP, with TLS if there is a
certificate, and so is the admin interface's second one, beside its Unix socket. Left out: HTTP/2,
which a proxy in front adds, and the certificate (``dapd.runtime.certificates``).
"""

from __future__ import annotations

import email.utils
import errno
import logging
import os
import socket
import ssl
import stat
import struct
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import h11
import structlog
import trio
from hypercorn.config import Config as HypercornConfig
from hypercorn.events import Closed, Event, RawData
from hypercorn.protocol.events import Event as StreamEvent
from hypercorn.protocol.events import Response
from hypercorn.protocol.h11 import H11Protocol
from hypercorn.trio.task_group import TaskGroup
from hypercorn.trio.tcp_server import TCPServer
from hypercorn.trio.worker_context import WorkerContext
from hypercorn.typing import ConnectionState
from hypercorn.utils import parse_socket_addr, wrap_app

from dapd.errors import NotYet, UsageError, describe
from dapd.runtime.clock import Clock

_log = structlog.get_logger()
_BACKLOG = 1024
_NOT_YET = {errno.EADDRNOTAVAIL, socket.EAI_AGAIN}
_KEEP_ALIVE_SECONDS = 75.0
_ENDLESS = 2**31
_LONGEST_UNIX_PATH = 107
_UNIX_MODE = 0o660
_PIECE = 1 << 16
"""Of an answer, sent within the time that a pause of a body may take."""


_TlsStream = trio.SSLStream[trio.SocketStream]
Tls = Callable[[], ssl.SSLContext | None]


def clear_text() -> None:
    """No certificate."""


class Server:
    """Accepts until ``close_listeners``, then lets the connections under way end.

    ``read_timeout`` and ``tls`` are asked anew for each connection: what they say may change, and
    what is under way goes on as it began.
    """

    def __init__(
        self,
        app: Callable[..., Any],
        listeners: list[trio.SocketListener],
        read_timeout: Callable[[], float],
        clock: Clock,
        tls: Tls = clear_text,
    ) -> None:
        self._listeners = listeners
        self._tls = tls
        self._context = WorkerContext(None)
        self._config = _hypercorn_config(read_timeout, clock)
        self._app = wrap_app(app, self._config.wsgi_max_body_size, "asgi")
        self._accepting = trio.CancelScope()

    async def run(self) -> None:
        """Until the listeners are closed and every connection has ended."""
        async with trio.open_nursery() as connections:
            with self._accepting:
                await trio.serve_listeners(
                    self._connection, self._listeners, handler_nursery=connections
                )

    async def close_listeners(self) -> None:
        """Accept no more; idle connections are closed, busy ones after their answer."""
        self._accepting.cancel()
        for listener in self._listeners:
            await listener.aclose()
        await self._context.terminated.set()

    async def _connection(self, stream: trio.SocketStream) -> None:
        state = ConnectionState(_caller(stream.socket))
        tls = self._tls()
        top = stream if tls is None else _over_tls(stream, tls)
        server = _Connection(self._app, self._config, self._context, state, top)  # type: ignore[arg-type]
        try:
            if await self._secured(top):
                await server.run()
        except* Exception as group:  # noqa: BLE001 - the edge that makes a connection an island
            _log.warning("connection_failed", error=describe(group))

    async def _secured(self, stream: trio.SocketStream | _TlsStream) -> bool:
        """Whether the connection can be used. Whoever can connect can fail a handshake, so that
        nothing is logged of it.
        """
        if isinstance(stream, trio.SocketStream):
            return True
        try:
            with trio.fail_after(self._config.read_timeout):
                await stream.do_handshake()
        except (trio.BrokenResourceError, trio.TooSlowError):
            await trio.aclose_forcefully(stream)
            return False
        return True


def _over_tls(stream: trio.SocketStream, tls: ssl.SSLContext) -> _TlsStream:
    # As HTTP does it: the end of a message is never told by the end of the connection.
    return trio.SSLStream(stream, tls, server_side=True, https_compatible=True)


class _Http1(H11Protocol):
    """No switch to HTTP/2 in clear text: what follows such a switch may leave a task of hypercorn's
    waiting for ever, to whoever can connect.
    """

    _discarded: trio.Event | None = None

    async def _check_protocol(self, event: h11.Request) -> None:
        """An upgrade that a server doesn't want is ignored (RFC 9110, section 7.8)."""

    async def stream_send(self, event: StreamEvent) -> None:
        """An answer before the request's end is the connection's last, and says so."""
        if isinstance(event, Response) and self.connection.their_state is h11.SEND_BODY:
            event = replace(event, headers=[*event.headers, (b"connection", b"close")])
        await super().stream_send(event)

    async def handle(self, event: Event) -> None:
        if self._discarded is None:
            await super().handle(event)
        elif isinstance(event, RawData):
            self.connection.receive_data(event.data)
            self._discard(self._discarded)
        else:
            self._discarded.set()

    async def discard_body(self) -> None:
        """Until its end, or that of the connection."""
        self._discarded = trio.Event()
        self._discard(self._discarded)
        await self._discarded.wait()

    def _discard(self, discarded: trio.Event) -> None:
        with suppress(h11.RemoteProtocolError):
            while isinstance(self.connection.next_event(), h11.Data):
                pass
        if self.connection.their_state is not h11.SEND_BODY:
            discarded.set()


class _Connection(TCPServer):
    """hypercorn's, without the choice of a protocol, and without waiting for the next request of a
    peer that has gone until the keep-alive time is over; but not closed on who still sends a body
    that was refused, as a reset would take the answer from its hands (RFC 9112, section 9.6).
    """

    async def run(self) -> None:
        secure = isinstance(self.stream, trio.SSLStream)
        sock = self.stream.transport_stream.socket if secure else self.stream.socket
        try:
            async with TaskGroup() as self._task_group:
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
                await self.idle_task.stop()  # the other end has closed: nothing more can come
        except OSError:
            pass  # it has gone
        finally:
            await self._close()

    async def protocol_send(self, event: Event) -> None:
        """Before a connection is closed on a refused body, the rest of that is read, if that takes
        no longer than a body may keep the connection waiting.
        """
        assert isinstance(self.protocol, _Http1)
        if isinstance(event, RawData):
            await self._send(event.data)
            return
        if isinstance(event, Closed) and self.protocol.connection.their_state is h11.SEND_BODY:
            with trio.move_on_after(self.config.read_timeout or 0):
                with suppress(AttributeError, trio.BrokenResourceError):  # TLS has no half a close
                    await self.stream.send_eof()
                await self.protocol.discard_body()
        await super().protocol_send(event)

    async def _send(self, data: bytes) -> None:
        """Unlike hypercorn's, it gives up a peer that doesn't read, at the latest with the grace
        period (I8).
        """
        async with self.send_lock:
            try:
                for start in range(0, len(data), _PIECE):
                    with trio.fail_after(self.config.read_timeout or 0):
                        await self.stream.send_all(data[start : start + _PIECE])
            except trio.Cancelled:
                await trio.aclose_forcefully(self.stream)  # after half an answer nothing may follow
                raise
            except (trio.BrokenResourceError, trio.ClosedResourceError, trio.TooSlowError):
                await trio.aclose_forcefully(self.stream)
                await self.protocol.handle(Closed())


@asynccontextmanager
async def listening(
    address: tuple[str, int] | None, table: str
) -> AsyncIterator[list[trio.SocketListener]]:
    """Sockets that listen on ``address``, which is that of a ``table`` of the configuration, or
    none; port 0 picks a free one. They are closed with the block.

    Raises ``UsageError`` if the address is taken, ``NotYet`` if this machine doesn't have it, as
    before the network is up.
    """
    listeners = [] if address is None else await _open(*address, table)
    try:
        yield listeners
    finally:
        for each in listeners:
            each.socket.close()


async def _open(host: str, port: int, table: str) -> list[trio.SocketListener]:
    # A socket for "::" would be for IPv6 alone; without a host Trio opens one for IPv4 as well.
    every = None if host == "::" else host
    try:
        return await trio.open_tcp_listeners(port, host=every, backlog=_BACKLOG)
    except OSError as error:
        place = f'[{table}] listen = "{host}:{port}"'
        if error.errno == errno.EADDRINUSE:
            raise UsageError(
                f"{place}: another program listens there; stop it or choose another port"
            ) from error
        if error.errno == errno.EACCES:
            raise UsageError(
                f"{place}: this user may not listen on ports below 1024; choose another port"
            ) from error
        kind = NotYet if error.errno in _NOT_YET else UsageError
        raise kind(
            f"{place}: {error.strerror or error}; name an address of this machine"
        ) from error


@contextmanager
def unix_listener(path: Path) -> Iterator[trio.SocketListener]:
    """A listening Unix socket that this user and group may open; its file goes with the block.

    What a killed daemon left behind is replaced. Raises ``UsageError``.
    """
    sock = _bind_unix(path)
    try:
        yield trio.SocketListener(trio.socket.from_stdlib_socket(sock))
    finally:
        sock.close()
        path.unlink(missing_ok=True)


def _bind_unix(path: Path) -> socket.socket:
    place = f"[admin] socket: {path}"
    if len(os.fsencode(path)) > _LONGEST_UNIX_PATH:
        raise UsageError(
            f"{place}: longer than the {_LONGEST_UNIX_PATH} bytes of a socket's path; set a "
            "shorter one, such as /run/dapd/admin.sock"
        )
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        _remove_stale(path, place)
        # On Linux the file gets the socket's mode: it is at no moment open to more users.
        os.fchmod(sock.fileno(), _UNIX_MODE)
        sock.bind(os.fspath(path))
        path.chmod(_UNIX_MODE)
        sock.listen(_BACKLOG)
    except BaseException as error:
        sock.close()
        if isinstance(error, OSError):
            raise UsageError(
                f"{place}: {error.strerror or error}; let this user write to an existing directory"
            ) from error
        raise
    return sock


def _remove_stale(path: Path, place: str) -> None:
    """Remove a socket on which nobody listens. Raises ``UsageError`` if it is anything else."""
    try:
        mode = path.lstat().st_mode
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(mode):
        raise UsageError(f"{place}: there is a file that is no socket; set another path")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        try:
            probe.connect(os.fspath(path))
        except ConnectionRefusedError:
            path.unlink(missing_ok=True)
            return
    raise UsageError(f"{place}: another program listens there; stop it or set another path")


def _caller(sock: trio.socket.SocketType) -> dict[str, Any]:
    """Which user of this machine connected to a Unix socket (``SO_PEERCRED``)."""
    if sock.family != socket.AF_UNIX:
        return {}
    raw = sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
    _, uid, _ = struct.unpack("3i", raw)
    return {"uid": uid}


class _Config(HypercornConfig):
    """Dates its responses by the daemon's clock: peers compare theirs with it (rule D6)."""

    clock: Clock
    current_read_timeout: Callable[[], float]

    @property
    def read_timeout(self) -> float:  # type: ignore[override]
        return self.current_read_timeout()

    def response_headers(self, protocol: str) -> list[tuple[bytes, bytes]]:
        return [(b"date", email.utils.formatdate(self.clock.now() / 1000, usegmt=True).encode())]


def _hypercorn_config(read_timeout: Callable[[], float], clock: Clock) -> _Config:
    config = _Config()
    config.clock = clock
    config.current_read_timeout = read_timeout
    config.errorlog = logging.getLogger("hypercorn.error")  # as all that is logged, not to stderr
    config.keep_alive_timeout = _KEEP_ALIVE_SECONDS
    config.keep_alive_max_requests = _ENDLESS
    return config
