"""Who may call the admin interface, by the door at which it calls: the socket, loopback, the world.

The socket's mode has decided before a request arrives. Whoever reaches a port, be it one that SSH
forwards to the socket, may be a browser that a page of somebody else's drives, so that a name that
is not ours is refused before all else (DNS rebinding), and nothing is ever allowed across origins.
Beyond loopback a token says what its bearer may do. Left out: what is served
(``dapd.admin.app``).
"""

from __future__ import annotations

from typing import Any, Protocol

from dapd import config
from dapd.config import is_loopback
from dapd.crypto import token_matches
from dapd.errors import Abort
from dapd.messages.common import b64url_encode
from dapd.runtime.context import Context
from dapd.telemetry.metrics import AdminRefusal

_SHOWN_OF_A_HASH = 6


class Door(Protocol):
    """Where requests come in."""

    def enter(self, scope: dict[str, Any], headers: dict[str, str]) -> None:
        """Raises ``Abort`` if nothing at all is served to this request."""

    def admit(
        self, scope: dict[str, Any], headers: dict[str, str], need: config.Scope | None
    ) -> dict[str, Any]:
        """Who it is, for the log; ``need`` is ``None`` for what everybody may see.

        Raises ``Abort`` with 401 or 403.
        """


class Socket:
    """The Unix socket: the kernel says which user it is. Commands call it ``dapd``."""

    def __init__(self, context: Context) -> None:
        self._context = context

    def enter(self, scope: dict[str, Any], headers: dict[str, str]) -> None:
        if not _is_this_machine(name := _called(headers)) and name != "dapd":
            raise _refused(self._context, "host")

    def admit(
        self, scope: dict[str, Any], headers: dict[str, str], need: config.Scope | None
    ) -> dict[str, Any]:
        return {"uid": scope["state"].get("uid")}


class Loopback:
    """A port of this machine: any of its users, and any page in their browsers."""

    def __init__(self, context: Context) -> None:
        self._context = context

    def enter(self, scope: dict[str, Any], headers: dict[str, str]) -> None:
        name = _called(headers)
        if not _is_this_machine(name) and name not in self._context.config.admin.hosts:
            raise _refused(self._context, "host")

    def admit(
        self, scope: dict[str, Any], headers: dict[str, str], need: config.Scope | None
    ) -> dict[str, Any]:
        return {}


class World:
    """A port that others reach: TLS, a name of ours, and a token."""

    def __init__(self, context: Context) -> None:
        self._context = context

    def enter(self, scope: dict[str, Any], headers: dict[str, str]) -> None:
        if scope["scheme"] != "https":  # a reload has taken the certificate away
            raise _refused(self._context, "clear_text")
        if _called(headers) not in self._context.config.admin.hosts:
            raise _refused(self._context, "host")

    def admit(
        self, scope: dict[str, Any], headers: dict[str, str], need: config.Scope | None
    ) -> dict[str, Any]:
        if need is None:
            return {}
        scheme, _, token = headers.get("authorization", "").partition(" ")
        if scheme.lower() != "bearer":
            raise _refused(self._context, "no_token")
        # Each is compared, so that the time tells nothing of which one it is.
        held = [
            (each, hashed)
            for each, hashed in self._context.config.admin.token_hashes
            if token_matches(token.strip(), (hashed,))
        ]
        if not held:
            raise _refused(self._context, "unknown_token")
        if need == "operate" and not any(each == "operate" for each, _ in held):
            raise _refused(self._context, "scope")
        return {"token": b64url_encode(held[0][1])[:_SHOWN_OF_A_HASH]}


def _called(headers: dict[str, str]) -> str:
    """The name by which a request calls us: its Host without the port."""
    host = headers.get("host", "").lower()
    name, _, port = host.rpartition(":")
    return name if port.isdecimal() else host


def _is_this_machine(name: str) -> bool:
    return is_loopback(name[1:-1] if name.startswith("[") and name.endswith("]") else name)


_REFUSALS: dict[AdminRefusal, tuple[int, str, str | None]] = {
    "host": (
        421,
        "this has another name: localhost, or those of [admin] hosts; the socket's is dapd too",
        None,
    ),
    "clear_text": (403, "the admin listener serves nothing in clear text", None),
    "no_token": (401, "this needs a token, as `Authorization: Bearer`", 'Bearer realm="dapd"'),
    "unknown_token": (
        401,
        "this token is none of [admin] tokens; `dapd admin token` makes one",
        'Bearer realm="dapd", error="invalid_token"',
    ),
    "scope": (
        403,
        "this token may only read; `dapd admin token --scope operate` makes one that changes",
        'Bearer realm="dapd", error="insufficient_scope", scope="operate"',
    ),
}


def _refused(context: Context, reason: AdminRefusal) -> Abort:
    """Counted, and not logged: whoever can connect can cause it."""
    context.metrics.admin_refused.labels(reason).inc()
    status, detail, challenge = _REFUSALS[reason]
    headers = {} if challenge is None else {"WWW-Authenticate": challenge}
    return Abort(None, detail, status=status, headers=headers)
