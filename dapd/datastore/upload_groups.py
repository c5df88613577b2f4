"""Upload transactions: each claims its key first (rule D1), which orders what it accepts.

The latest are kept, so that one whose connection was lost in COMMIT finds out that it was stored.
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
    """The group's place in the order of acceptance; ``None`` if it has been committed already."""
    row = tx.one(_Q_CLAIM, group_key=group_key)
    return int(row[0]) if row else None


def stored(tx: Tx, group_key: bytes) -> bytes:
    """What a committed group rejected: the outcomes of its parts' reports, joined."""
    row = tx.one(_Q_STORED, group_key=group_key)
    return bytes(row[0]) if row else b""


def note(tx: Tx, seq: int, rejected: bytes) -> None:
    """Keep the outcomes beside the claim, and forget the oldest group."""
    tx.execute(_Q_NOTE, seq=seq, rejected=rejected)
    tx.execute(_Q_FORGET, oldest=seq - KEPT)
