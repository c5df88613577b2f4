"""Exceptions, one class per culprit: the peer, the operator, the database.

A report that fails is never an exception: it is an outcome in a column.
"""

from __future__ import annotations

_MAX_DESCRIPTION = 500


class DecodeError(ValueError):
    """Malformed bytes: what is wrong (``reason``) and where (``offset``)."""

    def __init__(self, offset: int, reason: str) -> None:
        super().__init__(f"{reason} at byte {offset}")
        self.offset = offset
        self.reason = reason


class Abort(Exception):
    """The peer's request is at fault; the server answers a problem document (section "Errors").

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
    """The other Aggregator sent no answer, or one that can't be used."""


class DatastoreError(Exception):
    """The database can't be used; the message says what to do."""


class UnfitDatastore(DatastoreError):
    """This program must not open the database, and a restart doesn't change that."""


class UsageError(Exception):
    """The operator's input is at fault: configuration, task file or command line.

    The message is one line that names the place and the remedy.
    """


class NotYet(UsageError):
    """The input may be right but too early: starting again later may succeed."""


def printable(text: str, *, keep: str = "") -> str:
    """Make foreign text safe for a terminal or a page: escape characters that are invisible or
    change the direction of text, except those in ``keep``.
    """
    return "".join(
        each if each.isprintable() or each in keep else each.encode("unicode_escape").decode()
        for each in text
    )


def innermost(error: BaseException) -> BaseException:
    """Unwrap the exception groups that nurseries put around the failure that ended them."""
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error


def describe(error: BaseException) -> str:
    """Describe an exception in one line, for the log. Never use its ``repr``, which may contain
    the data being processed, as that of a ``UnicodeDecodeError`` does.
    """
    error = innermost(error)
    return f"{type(error).__name__}: {error}"[:_MAX_DESCRIPTION]
