"""Upload groups: the transaction of each claims its key first (rule D1), which orders its reports.

The latest ones are kept, so that a transaction that is run again after an unclear COMMIT finds its
first run.
"""

from __future__ import annotations

from dapd.datastore.sqlite import Tx

KEPT = 1_000

_Q_CLAIM = """
INSERT INTO upload_groups (group_key) VALUES (:group_key)
ON CONFLICT (group_key) DO NOTHING RETURNING seq"""
_Q_STORED = "SELECT rejected FROM upload_groups WHERE group_key = :group_key"
_Q_NOTE = "UPDATE upload_groups SET rejected = :rejected WHERE seq = :seq"
_Q_FORGET = "DELETE FROM upload_groups WHERE seq <= :oldest"


def claim(tx: Tx, group_key: bytes) -> int | None:
    """Claim a group; return its position in the order of acceptance, ``None`` if it is stored."""
    row = tx.one(_Q_CLAIM, group_key=group_key)
    return int(row[0]) if row else None


def stored(tx: Tx, group_key: bytes) -> bytes:
    """Return a stored group's outcomes: those of all its parts' reports, joined."""
    row = tx.one(_Q_STORED, group_key=group_key)
    return bytes(row[0]) if row else b""


def note(tx: Tx, seq: int, rejected: bytes) -> None:
    """Store a group's outcomes, and delete the oldest group."""
    tx.execute(_Q_NOTE, seq=seq, rejected=rejected)
    tx.execute(_Q_FORGET, oldest=seq - KEPT)
