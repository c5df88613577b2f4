"""The demo's interface to its display, and its exception."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any, Literal, Protocol

from dapd.demo.questions import Outcome, Question

Role = Literal["leader", "helper"]


class DemoFailed(Exception):
    """The demo did not go as promised; the message says what went wrong."""


class View(Protocol):
    """A display of what happens in the demo."""

    def setting_up(self) -> None: ...

    def command(self, line: str) -> None: ...

    def ready(self, seconds: float) -> None: ...

    def asking(self, question: Question) -> None: ...

    def log(self, role: Role, line: dict[str, Any]) -> None:
        """Show one of a daemon's log lines, parsed from JSON."""

    def progress(self, what: str, total: int | None) -> AbstractContextManager[Callable[[], None]]:
        """Show progress while the block runs; the demo calls the function ``total`` times."""

    def outcome(self, outcome: Outcome) -> None: ...

    def stopped(self, seconds: float) -> None: ...
