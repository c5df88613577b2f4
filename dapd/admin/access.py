"""Access to the admin interface, by the listener: the socket, loopback, or other machines.

The socket's file mode decides before a request arrives. On a port, also one that SSH forwards to
the socket, the caller may be a browser that runs another site's page. So a Host that is not ours is
refused first of all (DNS rebinding), and nothing is ever allowed across origins. Beyond loopback a
token says what its bearer may do. Left out: the operations (``dapd.admin.app``).
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
    """A listener's check of its requests."""

    def enter(self, scope: dict[str, Any], headers: dict[str, str]) -> None:
        """Raise ``Abort`` if this request gets nothing at all."""

    def admit(
        self, scope: dict[str, Any], headers: dict[str, str], need: config.Scope | None
    ) -> dict[str, Any]:
        """Return the caller, for the log; ``need`` is ``None`` for what everybody may see.

        Raises ``Abort`` with 401 or 403.
        """


class Socket:
    """The Unix socket, where the kernel tells the user. Commands send ``Host: dapd``."""

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
    """A port on loopback, for all users of this machine, and all pages in their browsers."""

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
    """A port that other machines reach: needs TLS, one of our names, and a token."""

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
        # All are compared, so that the time doesn't tell which one matches.
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
    """Return the request's Host without the port."""
    host = headers.get("host", "").lower()
    name, _, port = host.rpartition(":")
    return name if port.isdecimal() else host


def _is_this_machine(name: str) -> bool:
    return is_loopback(name[1:-1] if name.startswith("[") and name.endswith("]") else name)


_REFUSALS: dict[AdminRefusal, tuple[int, str, str | None]] = {
    "host": (
        421,
        "unknown Host: use localhost, a name in [admin] hosts, or dapd on the socket",
        None,
    ),
    "clear_text": (403, "the admin listener serves nothing without TLS", None),
    "no_token": (401, "this needs a token, as `Authorization: Bearer`", 'Bearer realm="dapd"'),
    "unknown_token": (
        401,
        "this token is not in [admin] tokens; `dapd admin token` makes one",
        'Bearer realm="dapd", error="invalid_token"',
    ),
    "scope": (
        403,
        "this token may only read; `dapd admin token --scope operate` makes one that may change",
        'Bearer realm="dapd", error="insufficient_scope", scope="operate"',
    ),
}


def _refused(context: Context, reason: AdminRefusal) -> Abort:
    """Count the refusal, without a log line: anybody that can connect could flood the log."""
    context.metrics.admin_refused.labels(reason).inc()
    status, detail, challenge = _REFUSALS[reason]
    headers = {} if challenge is None else {"WWW-Authenticate": challenge}
    return Abort(None, detail, status=status, headers=headers)
