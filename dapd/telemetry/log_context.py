"""The context of log lines: the request, the task and the job that the code works for.

It is bound where such work begins and merged into every line logged within: ``request_id`` here,
``task_id``, ``job_id`` and ``kind`` by structlog's context variables. Each Trio task gets a copy of
its parent's context, so work that a request starts keeps the request's id, and nothing leaks back.
"""

from __future__ import annotations

import uuid
from contextvars import ContextVar
from dataclasses import dataclass, field

from structlog.typing import EventDict


@dataclass(slots=True)
class _Request:
    """A request whose id is made on first use: of tens of thousands of uploads a second, hardly one
    needs its id.
    """

    id: str = field(default="", repr=False)


_request: ContextVar[_Request | None] = ContextVar("request", default=None)


def begin_request() -> None:
    """Mark that this Trio task serves a new HTTP request from here on."""
    _request.set(_Request())


def request_id() -> str | None:
    """Return dapd's own id of the current request, never the peer's; ``None`` outside a request."""
    request = _request.get()
    if request is None:
        return None
    request.id = request.id or str(uuid.uuid4())
    return request.id


def add_request_id(_logger: object, _method: str, event: EventDict) -> EventDict:
    """Add the request's id to a log line; a structlog processor."""
    found = request_id()
    return event if found is None else {"request_id": found, **event}
