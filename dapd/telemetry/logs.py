"""Logging: one event per line, as JSON or in a form for terminals; never a secret or a report.

All output goes through one renderer: dapd's events, libraries' logs, Python's warnings and uncaught
exceptions. An event that floods the log is written a few times a minute, then counted. Unprintable
characters are escaped, because a line may quote a peer, and must not control a terminal.
``docs/logs.md`` lists the events.
"""

from __future__ import annotations

import json
import logging
import math
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from types import TracebackType
from typing import Any

import structlog
import trio

from dapd.errors import describe, printable
from dapd.telemetry.journal import PRIORITIES, goes_to_journal
from dapd.telemetry.log_context import add_request_id

_log = structlog.get_logger()
_REPORT = "report this line: it is a bug in dapd"
_FLOOD_SECONDS = 60.0
_FLOOD_LINES = 20
"""Lines of one warning or error that are written per minute; more are only counted."""


def configure(level: str, form: str) -> None:
    """Configure logging for the process.

    ``form`` is "json", "human" or "auto"; "auto" is "human" if standard output is a terminal.
    """
    terminal = sys.stdout.isatty()
    human = form == "human" or (form == "auto" and terminal)
    shared: list[structlog.typing.Processor] = [
        structlog.contextvars.merge_contextvars,
        add_request_id,
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        _describe_exception,
        _note_error,
        FloodFilter(time.monotonic),
        structlog.processors.format_exc_info,  # rich tracebacks would print variables: keys (I9)
    ]
    renderer: list[structlog.typing.Processor] = (
        [
            _make_printable,
            structlog.dev.ConsoleRenderer(
                colors=terminal, exception_formatter=structlog.dev.plain_traceback
            ),
        ]
        if human
        else [_to_journal if goes_to_journal(sys.stdout) else _to_json]
    )
    structlog.configure(
        processors=[*shared, *renderer],
        wrapper_class=structlog.make_filtering_bound_logger(level),
        logger_factory=structlog.PrintLoggerFactory(sys.stdout),
        cache_logger_on_first_use=False,
    )
    # Libraries' warnings and errors go the same way.
    handler = _Forward()
    logging.basicConfig(handlers=[handler], level=logging.WARNING, force=True)
    logging.captureWarnings(capture=True)
    sys.excepthook = _log_uncaught
    sys.unraisablehook = _log_unraisable
    threading.excepthook = _log_thread


def set_level(level: str) -> None:
    """Change the lowest level that is written, and nothing else."""
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(level))


def level() -> str:
    """Return the lowest level that is written."""
    return str(logging.getLevelName(structlog.get_logger().get_effective_level())).lower()


@dataclass(frozen=True, slots=True)
class LoggedError:
    """The parts of an error's log line that other commands show; ``at`` is in RFC 3339."""

    at: str
    event: str
    detail: str | None
    remedy: str | None


_last_error: list[LoggedError] = []


def last_error() -> LoggedError | None:
    """Return the last error that this process has logged, or suppressed in a flood."""
    return _last_error[-1] if _last_error else None


class Seldom:
    """Limits how often a line is logged."""

    def __init__(self) -> None:
        self._last: dict[str, float] = {}

    def due(self, name: str, seconds: float) -> bool:
        """Return whether ``name`` was not due in the last ``seconds``. Call it within Trio."""
        now = trio.current_time()
        if now - self._last.get(name, -math.inf) < seconds:
            return False
        self._last[name] = now
        return True


class FloodFilter:
    """Suppresses floods: only the first lines of a warning or error are written each minute.

    The first line of the next minute contains the number of the others as ``suppressed``.
    """

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._seen: dict[str, tuple[float, int]] = {}

    def __call__(
        self, _logger: object, _method: str, event: structlog.typing.EventDict
    ) -> structlog.typing.EventDict:
        if event["level"] in ("debug", "info"):
            return event
        name, now = str(event["event"]), self._clock()
        with self._lock:
            since, lines = self._seen.get(name, (now, 0))
            suppressed = 0
            if now - since >= _FLOOD_SECONDS:
                suppressed = max(0, lines - _FLOOD_LINES)
                since, lines = now, 0
            self._seen[name] = since, lines + 1
        if lines >= _FLOOD_LINES:
            raise structlog.DropEvent
        return {**event, "suppressed": suppressed} if suppressed else event


def _describe_exception(
    _logger: object, _method: str, event: structlog.typing.EventDict
) -> structlog.typing.EventDict:
    found = event.get("exc_info")
    if found is True:
        found = sys.exc_info()
    error = found[1] if isinstance(found, tuple) else found
    return {"error": describe(error), **event} if error else event


def _note_error(
    _logger: object, _method: str, event: structlog.typing.EventDict
) -> structlog.typing.EventDict:
    if event["level"] in ("error", "critical"):
        said = [event[name] for name in ("error", "reason", "detail") if event.get(name)]
        remedy = event.get("likely_cause") or event.get("remedy")
        _last_error[:] = [
            LoggedError(
                str(event["timestamp"]),
                str(event["event"]),
                str(said[0]) if said else None,
                None if remedy is None else str(remedy),
            )
        ]
    return event


class _Forward(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        name, message, error = record.name, record.getMessage(), record.exc_info
        if record.levelno >= logging.ERROR:
            _log.error("library", logger=name, message=message, exc_info=error, remedy=_REPORT)
        else:
            _log.warning("library", logger=name, message=message, exc_info=error)


def _log_uncaught(
    kind: type[BaseException], error: BaseException, traceback: TracebackType | None
) -> None:
    _log.critical("uncaught", exc_info=(kind, error, traceback), remedy=_REPORT)


def _log_unraisable(unraisable: Any) -> None:
    # Not its object, whose repr may contain a secret or a report.
    _log.error("unraisable", exc_info=unraisable.exc_value, remedy=_REPORT)


def _log_thread(arguments: threading.ExceptHookArgs) -> None:
    _log.error("uncaught_in_thread", exc_info=arguments.exc_value, remedy=_REPORT)


def _make_printable(
    _logger: object, _method: str, event: structlog.typing.EventDict
) -> structlog.typing.EventDict:
    return {  # values other than strings are written as their repr
        name: printable(value, keep="\n") if isinstance(value, str) else value
        for name, value in event.items()
    }


def _to_json(_logger: object, _method: str, event: structlog.typing.EventDict) -> str:
    ordered: dict[str, Any] = {
        "timestamp": event.pop("timestamp"),
        "level": event.pop("level"),
        "event": event.pop("event"),
        **event,
    }
    return json.dumps(ordered, default=str, separators=(",", ":"))


def _to_journal(logger: object, method: str, event: structlog.typing.EventDict) -> str:
    return f"<{PRIORITIES[event['level']]}>{_to_json(logger, method, event)}"
