"""Open listening sockets: TCP addresses of the configuration, and the Unix socket for commands."""

from __future__ import annotations

import errno
import os
import socket
import stat
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from pathlib import Path

import trio

from dapd.errors import NotYet, UsageError

_BACKLOG = 1024
_NOT_YET = {errno.EADDRNOTAVAIL, socket.EAI_AGAIN}
_LONGEST_UNIX_PATH = 107
_UNIX_MODE = 0o660


@asynccontextmanager
async def listening(
    address: tuple[str, int] | None, table: str
) -> AsyncIterator[list[trio.SocketListener]]:
    """Listen on ``address``, the one in ``table`` of the configuration, until the block ends.

    Without an address there are no sockets; port 0 picks a free port. Raises ``UsageError`` if the
    address is taken, ``NotYet`` if this machine doesn't have it, as before the network is up.
    """
    listeners = [] if address is None else await _open(*address, table)
    try:
        yield listeners
    finally:
        for each in listeners:
            each.socket.close()


@contextmanager
def reserved_port() -> Iterator[int]:
    """A port of 127.0.0.1 for a daemon to listen on, which Linux gives to nobody who asks for any
    free one, also before the daemon listens and while it is stopped.
    """
    with socket.socket() as holder:
        # Sockets of one address that both say this exclude each other only in listening.
        holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        holder.bind(("127.0.0.1", 0))
        port: int = holder.getsockname()[1]
        yield port


async def _open(host: str, port: int, table: str) -> list[trio.SocketListener]:
    # Trio's socket for "::" would take IPv6 alone; without a host it opens one for IPv4 as well.
    every = None if host == "::" else host
    try:
        return await trio.open_tcp_listeners(port, host=every, backlog=_BACKLOG)
    except OSError as error:
        place = f'[{table}] listen = "{host}:{port}"'
        if error.errno == errno.EADDRINUSE:
            raise UsageError(
                f"{place}: another program listens on this port; stop it or choose another port"
            ) from error
        if error.errno == errno.EACCES:
            raise UsageError(
                f"{place}: this user may not listen on ports below 1024; choose another port"
            ) from error
        kind = NotYet if error.errno in _NOT_YET else UsageError
        raise kind(f"{place}: {error.strerror or error}; use an address of this machine") from error


@contextmanager
def unix_listener(path: Path) -> Iterator[trio.SocketListener]:
    """Listen on a Unix socket for this user and group, and remove its file when the block ends.

    Replaces the socket of a daemon that was killed. Raises ``UsageError``; ``NotYet`` if the disk
    is full.
    """
    sock = _bind_unix(path)
    try:
        yield trio.SocketListener(trio.socket.from_stdlib_socket(sock))
    finally:
        sock.close()
        # In a read-only directory it stays, and the next daemon replaces it.
        with suppress(OSError):
            path.unlink()


def _bind_unix(path: Path) -> socket.socket:
    place = f"[admin] socket: {path}"
    if len(os.fsencode(path)) > _LONGEST_UNIX_PATH:
        raise UsageError(
            f"{place}: a socket's path may have at most {_LONGEST_UNIX_PATH} bytes; set a shorter "
            "one, such as /run/dapd/admin.sock"
        )
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        _remove_stale(path, place)
        # On Linux the file gets the socket's mode, so no other user can open it for a moment.
        os.fchmod(sock.fileno(), _UNIX_MODE)
        sock.bind(os.fspath(path))
        path.chmod(_UNIX_MODE)
        sock.listen(_BACKLOG)
    except BaseException as error:
        sock.close()
        if isinstance(error, OSError):
            if error.errno == errno.ENOSPC:
                raise NotYet(f"{place}: {error.strerror}; free some space") from error
            raise UsageError(
                f"{place}: {error.strerror or error}; let this user write to an existing directory"
            ) from error
        raise
    return sock


def _remove_stale(path: Path, place: str) -> None:
    """Remove a socket on which no program listens. Raises ``UsageError`` for anything else."""
    try:
        mode = path.lstat().st_mode
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(mode):
        raise UsageError(f"{place}: this file is not a socket; set another path")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        try:
            probe.connect(os.fspath(path))
        except ConnectionRefusedError:
            path.unlink(missing_ok=True)
            return
    raise UsageError(
        f"{place}: another program listens on this socket; stop it or set another path"
    )
