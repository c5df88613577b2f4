"""Calls from a command to the running daemon, through its admin socket (rule E5).

``ask`` makes changes beyond tasks and keys: the daemon makes them if one runs, otherwise the
command itself does, holding the database's lock. ``call`` is for operations that need a daemon.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import httpx2
import msgspec

from dapd.errors import DatastoreError, UsageError

if TYPE_CHECKING:
    from dapd.admin.operation import Operation
    from dapd.config import Config
    from dapd.datastore import Datastore

Q = TypeVar("Q", bound=msgspec.Struct)
R = TypeVar("R", bound=msgspec.Struct)

_TIMEOUT_SECONDS = 600.0


class NoDaemon(UsageError):
    """No daemon answers on the admin socket."""


class _Problem(msgspec.Struct):
    """The part of a problem document (RFC 9457) that a command prints."""

    detail: str = "the daemon gave no reason"


def ask(
    config: Config, operation: Operation[Q, R], request: Q, alone: Callable[[Datastore], R]
) -> R:
    """Return the daemon's answer; if no daemon runs, take the lock and return what ``alone`` does.

    The socket comes first, because a member of the daemon's group can open nothing else. Raises
    ``UsageError`` or ``DatastoreError``.
    """
    from dapd.cli.store import open_as_owner
    from dapd.datastore.lock import holder_of

    with suppress(NoDaemon):
        return call(config, operation, request)
    path = config.datastore.path
    opened = open_as_owner(config, operation.name)
    try:
        if opened.lock is not None:
            return alone(opened.datastore)
    finally:
        opened.close()
    raise DatastoreError(
        f"{path} is held by {holder_of(path)}, which does not answer on {config.admin_socket}; "
        "try again once it has started or stopped"
    )


def call(
    config: Config, operation: Operation[Q, R], request: Q, *, seconds: float = _TIMEOUT_SECONDS
) -> R:
    """Return the daemon's answer, waiting at most ``seconds``.

    Raises ``UsageError`` if the daemon refuses the request, ``NoDaemon`` if no daemon runs, and
    ``DatastoreError`` if the daemon failed or gave no usable answer.
    """
    path = config.admin_socket
    _require_listener(path)
    posts = operation.method == "POST"
    with httpx2.Client(
        transport=httpx2.HTTPTransport(uds=os.fspath(path)),
        base_url="http://dapd",
        timeout=httpx2.Timeout(seconds, connect=5.0),
    ) as client:
        try:
            answer = client.request(
                operation.method,
                operation.path,
                params=None if posts else _query(request),
                content=msgspec.json.encode(request) if posts else None,
                headers={"Content-Type": "application/json"} if posts else {},
            )
        except httpx2.HTTPError as error:
            what = str(error) or type(error).__name__
            raise DatastoreError(
                f"{path}: no answer ({what}); the daemon's log says whether it was done"
            ) from error
    try:
        if answer.status_code == 200:
            return msgspec.json.decode(answer.content, type=operation.response)
        problem = msgspec.json.decode(answer.content, type=_Problem)
    except msgspec.DecodeError as error:
        raise DatastoreError(
            f"{path}: the daemon's answer does not fit this command ({error}); use the `dapd` "
            "command of the daemon's version"
        ) from error
    if answer.status_code < 500:
        raise UsageError(problem.detail)
    raise DatastoreError(problem.detail)


def _query(request: msgspec.Struct) -> dict[str, str]:
    """Return a request's fields as query parameters, without those that are ``None``."""
    fields = msgspec.to_builtins(request, str_keys=True).items()
    return {name: _text(value) for name, value in fields if value is not None}


def _text(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def _require_listener(path: Path) -> None:
    """Raise ``NoDaemon`` or ``UsageError``, with a remedy, unless something listens on ``path``.

    The HTTP client's own error would say less, and it leaks its socket.
    """
    with socket.socket(socket.AF_UNIX) as probe:
        try:
            probe.connect(os.fspath(path))
        except (FileNotFoundError, ConnectionRefusedError):
            raise NoDaemon(
                f"no daemon runs with this configuration (nothing listens on {path}); start it "
                "with `dapd --config FILE`"
            ) from None
        except PermissionError as error:
            raise UsageError(
                f"{path}: this user may not connect; run the command as the daemon's user, as a "
                "member of its group, or as root"
            ) from error
        except OSError as error:
            raise UsageError(f"{path}: {error}; set another [admin] socket") from error
