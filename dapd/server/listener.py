"""Accept connections and serve an ASGI application on each; one that fails affects no other.

hypercorn's own ``serve`` ends as a whole when a connection raises what it did not expect (its
#225: one websocket upgrade with trailing bytes). This listener logs the exception and ends that
connection alone. Left out: the connection itself (``dapd.server.connection``), the sockets
(``dapd.server.sockets``) and the certificate (``dapd.runtime.certificates``).
"""

from __future__ import annotations

import email.utils
import logging
import socket
import ssl
import struct
from collections.abc import Callable
from typing import Any

import structlog
import trio
from hypercorn.config import Config as HypercornConfig
from hypercorn.trio.worker_context import WorkerContext
from hypercorn.typing import ConnectionState
from hypercorn.utils import wrap_app

from dapd.errors import describe
from dapd.runtime.clock import Clock
from dapd.server.connection import Connection

_log = structlog.get_logger()
_KEEP_ALIVE_SECONDS = 75.0
_ENDLESS = 2**31

_TlsStream = trio.SSLStream[trio.SocketStream]
Tls = Callable[[], ssl.SSLContext | None]


def clear_text() -> None:
    """Serve without TLS: a ``Tls`` that returns no context."""


class Server:
    """Accepts connections until ``close_listeners``, then lets those under way end.

    It calls ``read_timeout`` and ``tls`` for each connection, as a reload may change both; a
    connection under way keeps its TLS context.
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
        """Serve until the listeners are closed and every connection has ended."""
        async with trio.open_nursery() as connections:
            with self._accepting:
                await trio.serve_listeners(
                    self._connection, self._listeners, handler_nursery=connections
                )

    async def close_listeners(self) -> None:
        """Accept no more, close idle connections, and close busy ones after their response."""
        self._accepting.cancel()
        for listener in self._listeners:
            await listener.aclose()
        await self._context.terminated.set()

    async def _connection(self, stream: trio.SocketStream) -> None:
        """Serve one connection; log what it raises."""
        state = ConnectionState(_caller(stream.socket))
        tls = self._tls()
        top = stream if tls is None else _over_tls(stream, tls)
        server = Connection(self._app, self._config, self._context, state, top)  # type: ignore[arg-type]
        try:
            if await self._complete_handshake(top):
                await server.run()
        except* Exception as group:  # noqa: BLE001 - a connection that fails ends alone
            _log.warning("connection_failed", error=describe(group))

    async def _complete_handshake(self, stream: trio.SocketStream | _TlsStream) -> bool:
        """Complete the TLS handshake, if there is one. Return whether the connection can be used.

        A failure is not logged: anyone can cause any number of them.
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
    # HTTP marks the end of each message itself, so a connection may end without TLS's close_notify.
    return trio.SSLStream(stream, tls, server_side=True, https_compatible=True)


def _caller(sock: trio.socket.SocketType) -> dict[str, Any]:
    """Return the user id of the process at the other end of a Unix socket (``SO_PEERCRED``)."""
    if sock.family != socket.AF_UNIX:
        return {}
    raw = sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
    _, uid, _ = struct.unpack("3i", raw)
    return {"uid": uid}


class _Config(HypercornConfig):
    """hypercorn's configuration, with a read timeout that may change and a ``Date`` by the daemon's
    clock, with which peers compare theirs (rule D6).
    """

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
    config.errorlog = logging.getLogger("hypercorn.error")  # into our log, not to stderr
    config.keep_alive_timeout = _KEEP_ALIVE_SECONDS
    config.keep_alive_max_requests = _ENDLESS
    return config
