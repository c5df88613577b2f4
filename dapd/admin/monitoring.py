"""Documents for monitoring: ``/metrics``, ``/healthz``, ``/readyz``.

The latter two need no token, so they only say whether the daemon answers, and whether it accepts
uploads and jobs.
"""

from __future__ import annotations

from collections.abc import Mapping

import structlog
import trio

from dapd.admin.gauges import Gauges
from dapd.admin.operation import Document
from dapd.datastore import safe_clock
from dapd.errors import Abort, DatastoreError
from dapd.runtime.context import Context

Answer = tuple[int, list[tuple[str, str]], bytes]

OPEN = frozenset({"/healthz", "/readyz"})
"""Paths that need no token."""

_log = structlog.get_logger()
_ALARM_EVERY = 60.0
_TEXT = "text/plain; charset=utf-8"


def documents(context: Context) -> Mapping[str, Document]:
    """Return the three documents, for all listeners of one daemon."""
    return {"/metrics": Metrics(context).show, "/healthz": healthy, "/readyz": ready}


class Metrics:
    """``/metrics``: scrapes at the same time share one refresh."""

    def __init__(self, context: Context) -> None:
        self._gauges = Gauges(context)
        self._looking = trio.Lock()
        self._looks = 0

    async def show(self, context: Context, headers: dict[str, str]) -> Answer:
        """Return all series, in OpenMetrics or in Prometheus' text, as the headers ask.

        Raises ``DatastoreError``.
        """
        before = self._looks
        async with self._looking:
            if self._looks == before:
                await self._gauges.refresh()
                self._looks += 1
        body, content_type = context.metrics.exposition(headers.get("accept", ""))
        return _answer(content_type, body)


async def healthy(_context: Context, _headers: dict[str, str]) -> Answer:
    """Answer, which shows that the event loop runs."""
    return _answer(_TEXT, b"ok\n")


async def ready(context: Context, _: dict[str, str]) -> Answer:
    """Answer if the daemon accepts uploads and jobs; else raise ``Abort`` with 503 and why."""
    if context.draining.is_set():
        raise Abort(None, "the daemon is stopping", status=503)
    context.disk.require_space()
    try:
        await context.read(safe_clock.load)
    except DatastoreError as error:
        if context.seldom.due("not_ready", _ALARM_EVERY):
            _log.error("not_ready", error=str(error), remedy="check the disk and the database")
        raise Abort(None, "the database can't be read; see the log", status=503) from error
    return _answer(_TEXT, b"ready\n")


def _answer(content_type: str, body: bytes) -> Answer:
    return 200, [("Content-Type", content_type), ("Cache-Control", "no-store")], body
