"""Exceptions, sorted by who is to blame.

One report that fails is never an exception: it is an outcome in a column.
"""

from __future__ import annotations

_MAX_DESCRIPTION = 500


class DecodeError(ValueError):
    """Bytes that are not what they should be: ``reason`` at byte ``offset``."""

    def __init__(self, offset: int, reason: str) -> None:
        super().__init__(f"{reason} at byte {offset}")
        self.offset = offset
        self.reason = reason


class Abort(Exception):
    """The peer's request is at fault: it ends with a problem document (section "Errors").

    ``type`` is one of the draft's eleven error tokens, or ``None`` for a plain HTTP status.
    """

    def __init__(
        self,
        type: str | None,
        detail: str,
        *,
        status: int = 400,
        headers: dict[str, str] | None = None,
    ) -> None:
        super().__init__(detail)
        self.type = type
        self.detail = detail
        self.status = status
        self.headers = headers or {}


class PeerError(Exception):
    """The other Aggregator answered something that can't be used, or nothing."""


class DatastoreError(Exception):
    """The database can't be used; the message says what to do."""


class UnfitDatastore(DatastoreError):
    """This program may not run on the database, and a restart doesn't change that."""


class UsageError(Exception):
    """The operator's input is at fault: configuration, task file or command line.

    The message is one line that names the place and the remedy.
    """


class NotYet(UsageError):
    """The input may be right and only too early: a later start may succeed with it."""


def printable(text: str, *, keep: str = "") -> str:
    """Foreign text for a terminal or a page: what can't be seen, or turns the direction of what
    follows, is written as an escape, but for the characters in ``keep``.
    """
    return "".join(
        each if each.isprintable() or each in keep else each.encode("unicode_escape").decode()
        for each in text
    )


def describe(error: BaseException) -> str:
    """An exception in one line, for the log. Not its ``repr``, which may show what was worked on,
    as that of a ``UnicodeDecodeError`` does.
    """
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return f"{type(error).__name__}: {error}"[:_MAX_DESCRIPTION]
