"""Serves an ASGI application over HTTP with hypercorn, one connection apart from another.

hypercorn's own ``serve`` ends as a whole when a connection raises what it did not expect (its
#225: one websocket upgrade with trailing bytes). Here each connection is an island: what it raises
is logged, and ends that connection alone.
"""

from __future__ import annotations

import errno
from collections.abc import Callable
from typing import Any

import structlog
import trio
from hypercorn.config import Config as HypercornConfig
from hypercorn.trio.tcp_server import TCPServer
from hypercorn.trio.worker_context import WorkerContext
from hypercorn.typing import ConnectionState
from hypercorn.utils import wrap_app

from dapd.errors import UsageError

_log = structlog.get_logger()
_BACKLOG = 1024
_KEEP_ALIVE_SECONDS = 75.0
_ENDLESS = 2**31


class Server:
    """Accepts until ``close_listeners``, then lets the connections under way end."""

    def __init__(
        self, app: Callable[..., Any], listeners: list[trio.SocketListener], read_timeout: float
    ) -> None:
        self._listeners = listeners
        self._context = WorkerContext(None)
        self._config = _hypercorn_config(read_timeout)
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
        server = TCPServer(
            self._app,
            self._config,
            self._context,
            ConnectionState({}),
            stream,  # type: ignore[arg-type]
        )
        try:
            await server.run()
        except* Exception as group:  # noqa: BLE001 - the edge that makes a connection an island
            _log.warning("connection_failed", error=repr(group.exceptions[0]))


async def open_listeners(host: str, port: int) -> list[trio.SocketListener]:
    """Listening sockets; port 0 picks a free one. Raises ``UsageError`` if the address is taken."""
    try:
        return await trio.open_tcp_listeners(port, host=host, backlog=_BACKLOG)
    except OSError as error:
        place = f'[server] listen = "{host}:{port}"'
        if error.errno == errno.EADDRINUSE:
            raise UsageError(
                f"{place}: another program listens there; stop it or choose another port"
            ) from error
        raise UsageError(f"{place}: {error.strerror or error}") from error


def _hypercorn_config(read_timeout: float) -> HypercornConfig:
    config = HypercornConfig()
    config.errorlog = None
    config.include_server_header = False
    config.keep_alive_timeout = _KEEP_ALIVE_SECONDS
    config.keep_alive_max_requests = _ENDLESS
    config.read_timeout = read_timeout  # type: ignore[assignment]
    return config
