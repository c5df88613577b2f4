"""What a check found, and how checks are written: as generators that tell and never fail.

A check yields its findings and may return what later ones go by; whatever it raises becomes a
finding too, so that one broken place hides nothing that lies elsewhere.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Generator
from pathlib import Path
from typing import Literal, ParamSpec, TypeVar

import msgspec

from dapd.errors import DatastoreError, UsageError

P = ParamSpec("P")
T = TypeVar("T")

Level = Literal["ok", "warning", "failure", "skipped"]
_LONGEST = 500
_AS_ROOT = "run it as root, or as the daemon's user"


class Finding(msgspec.Struct, frozen=True):
    """``check`` looked at ``subject``. A ``failure`` is mended by ``remedy``, a ``warning`` will be
    one, and what is ``skipped`` could not be looked at.
    """

    check: str
    subject: str
    level: Level
    detail: str
    remedy: str | None = None


Steps = Generator[Finding, None, T]


def ok(subject: object, detail: str) -> Finding:
    """There is nothing to do."""
    return Finding("", str(subject), "ok", detail)


def warning(subject: object, detail: str, remedy: str) -> Finding:
    """All works, and will not for ever."""
    return Finding("", str(subject), "warning", detail, remedy)


def failure(subject: object, detail: str, remedy: str) -> Finding:
    """Something does not work, or is not safe."""
    return Finding("", str(subject), "failure", detail, remedy)


def skipped(subject: object, detail: str, remedy: str | None = None) -> Finding:
    """It could not be looked at, or there is nothing to look at."""
    return Finding("", str(subject), "skipped", detail, remedy)


def blamed(error: UsageError | DatastoreError) -> Finding:
    """What an error says, which names the remedy after the blame."""
    if isinstance(error.__cause__, PermissionError):
        return skipped("", str(error).partition("; ")[0], _AS_ROOT)
    detail, _, remedy = str(error).partition("; ")
    return failure("", detail, remedy or "`dapd datastore check` looks closer")


def check(name: str) -> Callable[[Callable[P, Steps[T]]], Callable[P, Steps[T | None]]]:
    """The findings of a generator under this name; it returns ``None`` after it has raised."""

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
    """Whether there is such a file. Raises ``PermissionError`` if this user can't know."""
    try:
        path.stat()
    except (FileNotFoundError, NotADirectoryError):
        return False
    return True


def _raised(error: UsageError | DatastoreError | OSError) -> Finding:
    match error:
        case PermissionError():
            return skipped(error.filename or "", "this user may not look there", _AS_ROOT)
        case OSError():
            what = error.strerror or str(error)
            return failure(error.filename or "", what, "look at this path and what it is on")
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
    """On one line, and nothing that a terminal would obey: some of it is what a peer has sent."""
    line = " ".join(text.split())
    return "".join(each if each.isprintable() else "?" for each in line)[:_LONGEST]
