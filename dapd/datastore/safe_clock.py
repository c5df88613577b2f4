"""The time that the safe clock showed last (rule D6): what a start after a stop compares with."""

from __future__ import annotations

from dapd.datastore.engines import Tx

_Q_LOAD = "SELECT safe_now FROM safe_clock WHERE one = 1"
_Q_STORE = """
INSERT INTO safe_clock (one, safe_now) VALUES (1, :safe_now)
ON CONFLICT (one) DO UPDATE SET safe_now = excluded.safe_now"""


def load(tx: Tx) -> int | None:
    """Milliseconds; ``None`` for a database on which no daemon has run yet."""
    row = tx.one(_Q_LOAD)
    return None if row is None else int(row[0])


def store(tx: Tx, safe_now: int) -> None:
    """Keep the safe time (ms) for the next start."""
    tx.execute(_Q_STORE, safe_now=safe_now)
