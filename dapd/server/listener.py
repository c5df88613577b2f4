"""Accept connections and serve an ASGI application on each, one apart from another.

hypercorn's own ``serve`` ends as a whole when a connection raises what it did not expect (its
#225: one websocket upgrade with trailing bytes). Here each connection is an island: the listener
logs what it raises, and ends that connection alone. Left out: the connection itself
(``dapd.server.connection``), the sockets (``dapd.server.sockets``) and the certificate
(``dapd.runtime.certificates``).
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
        server = Connection(self._app, self._config, self._context, state, top)  # type: ignore[arg-type]
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
