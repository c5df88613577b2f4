"""The garbage collector's searches for expired rows: in the order of expiry, a page at a time.

Rule D6: reads hide what the collector may delete by the same comparison. A report's time is
compared with ``:expired_before``, in time precisions; a row's creation with ``:expired_ms``, by the
safe clock.
"""

from __future__ import annotations

from dataclasses import dataclass

from dapd.datastore.sqlite import Tx

PAGE = 500


@dataclass(frozen=True, slots=True)
class Found:
    """An expired row: its key, its position in the order, and its approximate size in bytes."""

    pk: int
    at: int
    size: int


START = Found(0, -1, 0)
"""The position before every row."""


def page(tx: Tx, query: str, after: Found, **parameters: object) -> list[Found]:
    """Return the next rows of a query for (pk, at, size) after (``:at``, ``:after_pk``)."""
    return [
        Found(*row)
        for row in tx.all(query, at=after.at, after_pk=after.pk, page=PAGE, **parameters)
    ]
