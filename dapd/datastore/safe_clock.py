"""The time that the safe clock showed last (rule D6): what a start after a stop compares with."""

from __future__ import annotations

from dataclasses import dataclass

from dapd.datastore.sqlite import Tx
from dapd.protocol.task import Instant

_Q_LOAD = "SELECT safe_now, doubted FROM safe_clock WHERE one = 1"
_Q_STORE = """
INSERT INTO safe_clock (one, safe_now, doubted) VALUES (1, :safe_now, :doubted)
ON CONFLICT (one) DO UPDATE SET safe_now = excluded.safe_now, doubted = excluded.doubted"""


@dataclass(frozen=True, slots=True)
class StoredClock:
    """The safe time (ms), and whether the machine's clock was doubted at that time: a restart alone
    does not end that.
    """

    safe: int
    doubted: bool = False


def load(tx: Tx) -> int | None:
    """Milliseconds; ``None`` for a database on which no daemon has run yet."""
    stored = load_all(tx)
    return None if stored is None else stored.safe


def instant(tx: Tx, now: int) -> Instant:
    """``now`` (ms) by both clocks for who has no safe clock of its own, as a command has none: by
    the one that was stored last, or by ``now`` if there is none.
    """
    safe = load(tx)
    return Instant(now, now if safe is None else safe)


def load_all(tx: Tx) -> StoredClock | None:
    """What a start goes by."""
    row = tx.one(_Q_LOAD)
    return None if row is None else StoredClock(int(row[0]), bool(row[1]))


def store(tx: Tx, clock: StoredClock) -> None:
    """Keep it for the next start."""
    tx.execute(_Q_STORE, safe_now=clock.safe, doubted=int(clock.doubted))
