"""What monitoring reads: ``/metrics``, ``/healthz``, ``/readyz``.

The latter two are open to everybody who reaches a listener, so they say nothing of the daemon but
whether it lives, and whether it takes what is sent to it.
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
"""What needs no token."""

_log = structlog.get_logger()
_ALARM_EVERY = 60.0
_TEXT = "text/plain; charset=utf-8"


def documents(context: Context) -> Mapping[str, Document]:
    """The three; once for a daemon, however many listeners serve them."""
    return {"/metrics": Metrics(context).show, "/healthz": healthy, "/readyz": ready}


class Metrics:
    """``/metrics``: scrapes that come while one looks share what it finds."""

    def __init__(self, context: Context) -> None:
        self._gauges = Gauges(context)
        self._looking = trio.Lock()
        self._looks = 0

    async def show(self, context: Context, headers: dict[str, str]) -> Answer:
        """All series, in OpenMetrics or in Prometheus' text, as it is asked for.

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
    """The event loop answers: that it is asked is all."""
    return _answer(_TEXT, b"ok\n")


async def ready(context: Context, _: dict[str, str]) -> Answer:
    """Uploads and jobs are taken now. Raises ``Abort`` with 503 and the reason if not."""
    if context.draining.is_set():
        raise Abort(None, "the daemon is stopping", status=503)
    context.disk.require_space()
    try:
        await context.read(safe_clock.load)
    except DatastoreError as error:
        if context.seldom.due("not_ready", _ALARM_EVERY):
            _log.error("not_ready", error=str(error), remedy="check the disk and the database")
        raise Abort(None, "the database can't be read; the log says why", status=503) from error
    return _answer(_TEXT, b"ready\n")


def _answer(content_type: str, body: bytes) -> Answer:
    return 200, [("Content-Type", content_type), ("Cache-Control", "no-store")], body
