"""Log lines: one event a line, JSON or, on a terminal, for people. No secret, no report, ever."""

from __future__ import annotations

import logging
import math
import sys
from typing import Any

import orjson
import structlog
import trio


def configure(level: str, form: str) -> None:
    """``form`` is "json", "human" or "auto": for people where standard output is a terminal."""
    human = form == "human" or (form == "auto" and sys.stdout.isatty())
    shared: list[structlog.typing.Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
    ]
    # Plain tracebacks: the rich ones print local variables, keys among them (I9).
    renderer: list[structlog.typing.Processor] = (
        [structlog.dev.ConsoleRenderer(exception_formatter=structlog.dev.plain_traceback)]
        if human
        else [structlog.processors.format_exc_info, _to_json]
    )
    structlog.configure(
        processors=[*shared, *renderer],
        wrapper_class=structlog.make_filtering_bound_logger(level),
        logger_factory=structlog.PrintLoggerFactory(sys.stdout),
        cache_logger_on_first_use=False,
    )
    # What libraries log goes the same way, warnings and worse only.
    handler = _Forward()
    logging.basicConfig(handlers=[handler], level=logging.WARNING, force=True)
    logging.captureWarnings(capture=True)


class Seldom:
    """Says whether a line that may come often is due again."""

    def __init__(self) -> None:
        self._last: dict[str, float] = {}

    def due(self, name: str, seconds: float) -> bool:
        """Whether ``name`` was not due in the last so many seconds. Within Trio."""
        now = trio.current_time()
        if now - self._last.get(name, -math.inf) < seconds:
            return False
        self._last[name] = now
        return True


class _Forward(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        log = structlog.get_logger()
        log.log(
            record.levelno,
            "library",
            logger=record.name,
            message=record.getMessage(),
            exc_info=record.exc_info,
        )


def _to_json(_logger: object, _method: str, event: structlog.typing.EventDict) -> str:
    ordered: dict[str, Any] = {
        "timestamp": event.pop("timestamp"),
        "level": event.pop("level"),
        "event": event.pop("event"),
        **event,
    }
    return orjson.dumps(ordered, default=str).decode()
