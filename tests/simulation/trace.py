"""What happened in a run: the log lines of both Aggregators, the exchanges, and what was done.

Two runs of one seed have the same trace, whatever Python's hash seed is.
"""

from __future__ import annotations

import hashlib
import sys
import traceback
from collections.abc import Mapping
from typing import Any

import structlog
import trio

from tests.simulation.determinism import current

_UNSTABLE = frozenset({"exc_info", "path", "error", "detail", "traceback", "free_bytes"})


class Trace:
    """Collects events; ``digest`` is the same for the same events in the same order."""

    def __init__(self, *, keep: bool) -> None:
        self._keep = keep
        self._hash = hashlib.sha256()
        self.lines: list[str] = []
        self.failures: list[str] = []

    def note(self, event: str, **fields: object) -> None:
        told = " ".join(f"{name}={value}" for name, value in sorted(fields.items()))
        line = f"{trio.current_time():12.6f} {current.get() or '-'} {event} {told}"
        self._hash.update(line.encode())
        if self._keep:
            self.lines.append(line)

    @property
    def digest(self) -> str:
        return self._hash.hexdigest()

    def listen_to_logs(self) -> None:
        """Take every log line of this process into the trace."""
        structlog.configure(
            processors=[structlog.contextvars.merge_contextvars, self._take],
            wrapper_class=structlog.make_filtering_bound_logger("debug"),
            logger_factory=structlog.ReturnLoggerFactory(),
            cache_logger_on_first_use=False,
        )

    def _take(self, _logger: object, level: str, event: Mapping[str, Any]) -> Mapping[str, Any]:
        fields = {name: value for name, value in event.items() if name not in _UNSTABLE}
        name = str(fields.pop("event"))
        if event.get("exc_info") and level == "error":
            failure = _exception(event["exc_info"])
            if "the disk is full" not in failure:
                self.failures.append(f"{current.get()}: {name}: {failure}")
        if self._keep and (why := event.get("error") or event.get("detail")):
            self.lines.append(f"{'':13}{why}")
        self.note(f"[{level}] {name}", **fields)
        raise structlog.DropEvent


def _exception(exc_info: object) -> str:
    error = exc_info if isinstance(exc_info, BaseException) else sys.exception()
    return "" if error is None else "".join(traceback.format_exception(error))
