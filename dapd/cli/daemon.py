"""How a command reaches the running daemon: through its admin socket (rule E5).

A change beyond tasks and keys is made by the daemon if one runs, else by the command itself, which
holds the database's lock meanwhile: ``ask`` does either. ``call`` is for what only a daemon knows.
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
    """Nobody answers on the admin socket."""


class _Problem(msgspec.Struct):
    """What of a problem document (RFC 9457) a command says."""

    detail: str = "the daemon gave no reason"


def ask(
    config: Config, operation: Operation[Q, R], request: Q, alone: Callable[[Datastore], R]
) -> R:
    """What the daemon answers; if none runs, what ``alone`` does in its place, under the lock.

    The socket is tried first: it is all that one of the daemon's group can open. Raises
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
        "try again when it has started or stopped"
    )


def call(
    config: Config, operation: Operation[Q, R], request: Q, *, seconds: float = _TIMEOUT_SECONDS
) -> R:
    """What the daemon answers within so many seconds.

    Raises ``UsageError`` for what it refuses, ``NoDaemon`` if there is none, ``DatastoreError`` for
    what it failed at.
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
            f"{path}: this daemon speaks otherwise ({error}); use the `dapd` command of its version"
        ) from error
    if answer.status_code < 500:
        raise UsageError(problem.detail)
    raise DatastoreError(problem.detail)


def _query(request: msgspec.Struct) -> dict[str, str]:
    """A request's fields as a query has them; what is not there is left out."""
    fields = msgspec.to_builtins(request, str_keys=True).items()
    return {name: _text(value) for name, value in fields if value is not None}


def _text(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def _require_listener(path: Path) -> None:
    """Raise what to do if nobody listens there; the HTTP client says less, and leaks its socket."""
    with socket.socket(socket.AF_UNIX) as probe:
        try:
            probe.connect(os.fspath(path))
        except (FileNotFoundError, ConnectionRefusedError):
            raise NoDaemon(
                f"no daemon runs on this configuration ({path}); start it with `dapd --config FILE`"
            ) from None
        except PermissionError as error:
            raise UsageError(
                f"{path}: this user may not use it; run this as the daemon's user or as one of "
                "its group"
            ) from error
        except OSError as error:
            raise UsageError(f"{path}: {error}; set another [admin] socket") from error
