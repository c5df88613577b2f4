"""Findings, and the decorator that makes a generator of findings a check.

A check yields its findings, and may return facts for later checks. An error that it raises becomes
a finding too, so that one broken thing hides no other.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Generator
from pathlib import Path
from typing import Literal, ParamSpec, TypeVar

import msgspec

from dapd.errors import DatastoreError, UsageError, printable

P = ParamSpec("P")
T = TypeVar("T")

Level = Literal["ok", "warning", "failure", "skipped"]
_LONGEST = 500
_AS_ROOT = "run `dapd doctor` as root, or as the daemon's user"


class Finding(msgspec.Struct, frozen=True):
    """What ``check`` found out about ``subject``.

    A ``failure`` is wrong now, a ``warning`` works but needs attention, and ``skipped`` could not
    be checked. Commands in a ``remedy`` are in backticks.
    """

    check: str
    subject: str
    level: Level
    detail: str
    remedy: str | None = None


Steps = Generator[Finding, None, T]


def ok(subject: object, detail: str) -> Finding:
    """Return a finding that needs nothing."""
    return Finding("", str(subject), "ok", detail)


def warning(subject: object, detail: str, remedy: str) -> Finding:
    """Return a finding that works now, but needs attention."""
    return Finding("", str(subject), "warning", detail, remedy)


def failure(subject: object, detail: str, remedy: str) -> Finding:
    """Return a finding that does not work, or is not safe."""
    return Finding("", str(subject), "failure", detail, remedy)


def skipped(subject: object, detail: str, remedy: str | None = None) -> Finding:
    """Return a finding for something that could not be checked, or isn't there."""
    return Finding("", str(subject), "skipped", detail, remedy)


def blamed(error: UsageError | DatastoreError) -> Finding:
    """Return an error as a finding: its message has the remedy after a semicolon."""
    if isinstance(error.__cause__, PermissionError):
        return skipped("", str(error).partition("; ")[0], _AS_ROOT)
    detail, _, remedy = str(error).partition("; ")
    return failure("", detail, remedy or "run `dapd datastore check`")


def check(name: str) -> Callable[[Callable[P, Steps[T]]], Callable[P, Steps[T | None]]]:
    """Make a generator the check of this name; it returns ``None`` if it raised an error."""

    def named(steps: Callable[P, Steps[T]]) -> Callable[P, Steps[T | None]]:
        @functools.wraps(steps)
        def run(*args: P.args, **kwargs: P.kwargs) -> Steps[T | None]:
            running = steps(*args, **kwargs)
            while True:
                try:
                    found = next(running)
                except StopIteration as end:
                    returned: T = end.value
                    return returned
                except (UsageError, DatastoreError, OSError) as error:
                    yield _named(_raised(error), name)
                    return None
                yield _named(found, name)

        return run

    return named


def is_there(path: Path) -> bool:
    """Return whether the file exists. Raises ``PermissionError`` if this user can't know."""
    try:
        path.stat()
    except (FileNotFoundError, NotADirectoryError):
        return False
    return True


def _raised(error: UsageError | DatastoreError | OSError) -> Finding:
    match error:
        case PermissionError():
            return skipped(error.filename or "", "this user may not read it", _AS_ROOT)
        case OSError():
            what = error.strerror or str(error)
            return failure(error.filename or "", what, "check this path and its file system")
        case _:
            return blamed(error)


def _named(found: Finding, name: str) -> Finding:
    return Finding(
        name,
        _plain(found.subject),
        found.level,
        _plain(found.detail),
        None if found.remedy is None else _plain(found.remedy),
    )


def _plain(text: str) -> str:
    """Return text on one line, without control characters: a peer may have sent part of it."""
    return printable(" ".join(text.split()))[:_LONGEST]
