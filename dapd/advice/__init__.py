"""Advice to operators: what is wrong, from when on it is, and what to do about it.

`dapd status`, the page, `dapd doctor`, the log and the alert rules all take it from here, so that
they say the same. Pure: facts in, words out. Left out: gathering the facts, and where the words go.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Advice:
    """One thing that a person must see to: ``subject`` (which may be empty) and ``what`` make a
    sentence, and ``remedy`` is what to do, with commands in backticks.
    """

    subject: str
    what: str
    remedy: str

    @property
    def problem(self) -> str:
        """The sentence without the remedy."""
        return f"{self.subject} {self.what}".lstrip()

    def __str__(self) -> str:
        return f"{self.problem}: {self.remedy}"
