"""What the garbage collector looks for: rows in the order of their expiry, a page at a time.

Rule D6: reads hide what the collector may take, by the same comparison: a time of reports with
``:expired_before``, in time precisions, and a moment of making with ``:expired_ms``, by the safe
clock.
"""

from __future__ import annotations

from dataclasses import dataclass

from dapd.datastore.sqlite import Tx

PAGE = 500


@dataclass(frozen=True, slots=True)
class Found:
    """A row that may go: its key, its place in the order, and about how many bytes it takes."""

    pk: int
    at: int
    size: int


START = Found(0, -1, 0)
"""Before every row."""


def page(tx: Tx, query: str, after: Found, **parameters: object) -> list[Found]:
    """The next rows of a query that gives (pk, at, size) behind (``:at``, ``:pk``), in order."""
    return [
        Found(*row)
        for row in tx.all(query, at=after.at, after_pk=after.pk, page=PAGE, **parameters)
    ]
