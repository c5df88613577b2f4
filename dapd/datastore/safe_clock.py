"""The stored time of the safe clock (rule D6), which the next start compares with."""

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
    """The safe time (ms), and whether the machine's clock is in doubt, even after a restart."""

    safe: int
    doubted: bool = False


def load(tx: Tx) -> int | None:
    """Return the safe time (ms); ``None`` if no daemon has run on the database yet."""
    stored = load_all(tx)
    return None if stored is None else stored.safe


def instant(tx: Tx, now: int) -> Instant:
    """Return ``now`` (ms) by both clocks, for commands, which have no safe clock of their own: they
    use the stored safe time or, without one, ``now``.
    """
    safe = load(tx)
    return Instant(now, now if safe is None else safe)


def load_all(tx: Tx) -> StoredClock | None:
    """Return the stored clock, if a daemon has ever stored one."""
    row = tx.one(_Q_LOAD)
    return None if row is None else StoredClock(int(row[0]), bool(row[1]))


def store(tx: Tx, clock: StoredClock) -> None:
    """Store the clock for the next start."""
    tx.execute(_Q_STORE, safe_now=clock.safe, doubted=int(clock.doubted))
