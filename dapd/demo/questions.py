"""The demo's questions, and the check that the collected results are true."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from dapd.collector import Result
from dapd.wording import count


@dataclass(frozen=True, slots=True)
class Question:
    """A question to every client. ``draw`` returns one client's answer, an integer measurement."""

    name: str
    text: str
    unit: str
    vdaf: str
    batch_mode: Literal["time-interval", "leader-selected"]
    helper_mode: Literal["async", "sync"]
    draw: Callable[[random.Random], int]

    @property
    def buckets(self) -> int | None:
        """The number of buckets of a histogram; ``None`` for a sum."""
        kind, _, parameter = self.vdaf.partition(":length=")
        return int(parameter) if kind == "histogram" else None

    def truth(self, answers: list[int]) -> int | list[int]:
        """Return the result that must be collected."""
        if self.buckets is None:
            return sum(answers)
        return [answers.count(bucket) for bucket in range(self.buckets)]


QUESTIONS = (
    Question(
        "sleep",
        "How many hours did you sleep last night?",
        "hours",
        "histogram:length=13",
        "time-interval",
        "async",
        lambda chance: min(max(round(chance.gauss(7, 1.5)), 0), 12),
    ),
    Question(
        "coffee",
        "How many cups of coffee did you drink today?",
        "cups",
        "sum:max_measurement=10",
        "leader-selected",
        "sync",
        lambda chance: sum(chance.random() < 0.25 for _ in range(10)),
    ),
)


@dataclass(frozen=True, slots=True)
class Outcome:
    """The result of a question; times are seconds."""

    question: Question
    truth: int | list[int]
    result: Result
    upload_seconds: float
    collect_seconds: float

    def difference(self, clients: int) -> str | None:
        """Return what is wrong with the collected result; ``None`` if it is right."""
        if self.result.report_count != clients:
            return f"{count(self.result.report_count, 'report')} collected, {clients} uploaded"
        if self.result.value != self.truth:
            return f"collected {self.result.value}, but the truth is {self.truth}"
        return None
