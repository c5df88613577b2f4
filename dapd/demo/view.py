"""What the demo tells whoever watches; and, by an exception, whoever ran it."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any, Literal, Protocol

from dapd.demo.questions import Outcome, Question

Role = Literal["leader", "helper"]


class DemoFailed(Exception):
    """Something did not go as promised; the message says what."""


class View(Protocol):
    """What the demo tells whoever watches."""

    def setting_up(self) -> None: ...

    def command(self, line: str) -> None: ...

    def ready(self, seconds: float) -> None: ...

    def asking(self, question: Question) -> None: ...

    def log(self, role: Role, line: dict[str, Any]) -> None:
        """One of the daemon's log lines, as it was parsed from JSON."""

    def progress(self, what: str, total: int | None) -> AbstractContextManager[Callable[[], None]]:
        """Something that takes a while; its function is called ``total`` times, if given."""

    def outcome(self, outcome: Outcome) -> None: ...

    def stopped(self, seconds: float) -> None: ...
