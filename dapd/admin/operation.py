"""The types of what the admin interface serves: operations in JSON, and documents.

Requests and responses are msgspec Structs, with times as aware UTC datetimes (RFC 3339). None may
contain a key, a token or a share: each change is logged with its whole request.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Annotated, Any, Generic, Literal, TypeVar
from urllib.parse import parse_qsl

import msgspec

from dapd.config import Scope
from dapd.protocol.task import LAST_MOMENT
from dapd.runtime.context import Context

Q = TypeVar("Q", bound=msgspec.Struct)
R = TypeVar("R", bound=msgspec.Struct)

Document = Callable[[Context, dict[str, str]], Awaitable[tuple[int, list[tuple[str, str]], bytes]]]
"""Answers a GET, given the request's headers (names in lower case), with a status, headers and a
body. It changes nothing.
"""


Moment = Annotated[datetime, msgspec.Meta(tz=True)]
"""An aware datetime, in RFC 3339."""


class Nothing(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A request without fields; its JSON is ``{}``."""


@dataclass(frozen=True, slots=True)
class Operation(Generic[Q, R]):
    """One operation. A GET has its request in the query string and changes nothing; a POST has it
    as JSON, and is logged under ``name``.

    ``run`` raises ``UsageError`` if the daemon's state doesn't allow it (409), ``Abort`` for
    another status.
    """

    name: str
    method: Literal["GET", "POST"]
    path: str
    request: type[Q]
    response: type[R]
    run: Callable[[Context, Q], Awaitable[R]]

    @property
    def scope(self) -> Scope:
        """The scope that a token needs."""
        return "read" if self.method == "GET" else "operate"

    def decode(self, query: bytes, body: bytes) -> Q:
        """Decode the request; unknown fields are errors. Raises ``msgspec.DecodeError``."""
        if self.method == "POST":
            return msgspec.json.decode(body, type=self.request)
        fields = _fields(query)
        request = msgspec.convert(fields, self.request, strict=False)
        for name in fields:
            if getattr(request, name) is None:  # msgspec reads the word `null` as None
                raise msgspec.ValidationError(f"{name}: `null` is not allowed; leave it out")
        return request

    def described(self, request: Q) -> dict[str, Any]:
        """Return the request for the log."""
        described: dict[str, Any] = msgspec.to_builtins(request)
        return described


def rfc3339(milliseconds: int) -> Moment:
    """Return a time, in ms since the Epoch, as responses have it."""
    return datetime.fromtimestamp(milliseconds / 1000, UTC)


def rfc3339_or_never(milliseconds: int | None) -> Moment | None:
    """Return a time as responses have it; ``None`` for never, or after the year 9999."""
    if milliseconds is None or milliseconds > LAST_MOMENT:
        return None
    return rfc3339(milliseconds)


def _fields(query: bytes) -> dict[str, str]:
    pairs = parse_qsl(query.decode("latin-1"), keep_blank_values=True)
    fields = dict(pairs)
    if len(fields) < len(pairs):
        raise msgspec.ValidationError("a field is in the query twice; give it once")
    return fields
