"""What the admin interface serves: operations, which speak JSON, and documents, which are read.

Requests and responses are msgspec Structs, times in them aware UTC datetimes (RFC 3339). None of
them ever holds a key, a token or a share: what changes is logged with its whole request.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Annotated, Any, Generic, Literal, TypeVar
from urllib.parse import parse_qsl

import msgspec

from dapd.config import Scope
from dapd.runtime.context import Context

Q = TypeVar("Q", bound=msgspec.Struct)
R = TypeVar("R", bound=msgspec.Struct)


Document = Callable[[Context, dict[str, str]], Awaitable[tuple[int, list[tuple[str, str]], bytes]]]
"""Answers a GET of its path, given the request's headers (names in lower case), with a status,
headers and a body. It changes nothing.
"""


Moment = Annotated[datetime, msgspec.Meta(tz=True)]
"""An aware datetime, in RFC 3339."""


class Nothing(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A request that says all by where it goes; its JSON is ``{}``."""


@dataclass(frozen=True, slots=True)
class Operation(Generic[Q, R]):
    """A GET takes its request from the query string and changes nothing; a POST takes it as JSON,
    and is logged under ``name``.

    ``run`` raises ``UsageError`` where the state refuses (409), ``Abort`` for another status.
    """

    name: str
    method: Literal["GET", "POST"]
    path: str
    request: type[Q]
    response: type[R]
    run: Callable[[Context, Q], Awaitable[R]]

    @property
    def scope(self) -> Scope:
        """What a token must be for."""
        return "read" if self.method == "GET" else "operate"

    def decode(self, query: bytes, body: bytes) -> Q:
        """Its request; unknown fields are refused. Raises ``msgspec.DecodeError``."""
        if self.method == "POST":
            return msgspec.json.decode(body, type=self.request)
        fields = _fields(query)
        request = msgspec.convert(fields, self.request, strict=False)
        for name in fields:
            if getattr(request, name) is None:  # msgspec takes the word `null` for it
                raise msgspec.ValidationError(f"`null` is no value here; leave {name} out")
        return request

    def described(self, request: Q) -> dict[str, Any]:
        """The request for the log."""
        described: dict[str, Any] = msgspec.to_builtins(request)
        return described


def rfc3339(milliseconds: int) -> Moment:
    """A time since the Epoch as responses have it."""
    return datetime.fromtimestamp(milliseconds / 1000, UTC)


def _fields(query: bytes) -> dict[str, str]:
    pairs = parse_qsl(query.decode("latin-1"), keep_blank_values=True)
    fields = dict(pairs)
    if len(fields) < len(pairs):
        raise msgspec.ValidationError("a field is in the query twice; name it once")
    return fields
