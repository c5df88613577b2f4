"""Whence a line comes: the request, the task and the job that its code works for.

Bound where such work begins, and merged into every line written within: ``request_id`` here,
``task_id``, ``job_id`` and ``kind`` by structlog's context variables. Trio gives each task a copy
of its parent's, so that work which a request has started keeps its id, and nothing leaks back.
"""

from __future__ import annotations

import uuid
from contextvars import ContextVar
from dataclasses import dataclass, field

from structlog.typing import EventDict


@dataclass(slots=True)
class _Request:
    """Uploads come in tens of thousands a second, and hardly one needs its id."""

    id: str = field(default="", repr=False)


_request: ContextVar[_Request | None] = ContextVar("request", default=None)


def begin_request() -> None:
    """From here on this Trio task serves another HTTP request."""
    _request.set(_Request())


def request_id() -> str | None:
    """The id of the request that is served; ours, never the peer's. ``None`` outside one."""
    request = _request.get()
    if request is None:
        return None
    request.id = request.id or str(uuid.uuid4())
    return request.id


def add_request_id(_logger: object, _method: str, event: EventDict) -> EventDict:
    """A processor of structlog's."""
    found = request_id()
    return event if found is None else {"request_id": found, **event}
