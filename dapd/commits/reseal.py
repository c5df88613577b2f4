"""The transactions of sealing again: values in pages, and the end, when the old keys go (rule F2).

New values are sealed with the first key, and a value that another transaction has changed or moved
meanwhile is left to whoever did; so passes in ascending order find everything, and the one that
finds nothing more is the last.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from dapd.datastore import sealed
from dapd.datastore.engines import Tx
from dapd.datastore.sealed import Cell, Column


@dataclass(frozen=True, slots=True)
class Standing:
    """What is left to do for the key that seals now: the ids of the ``others`` that some value may
    be sealed with, and up to which row each column is done.
    """

    others: list[bytes]
    progress: dict[str, int]


def standing(tx: Tx, key_id: bytes) -> Standing:
    """Where sealing again with this key stands."""
    others = [other for other in sealed.sealing_key_ids(tx) if other != key_id]
    return Standing(others, sealed.progress(tx, key_id))


def replace(
    tx: Tx, column: Column, values: Sequence[tuple[Cell, bytes]], key_id: bytes, after: int
) -> int:
    """Store values that were sealed again, and that all rows up to ``after`` are done.

    A cell that is not as it was read any more stays as it is. How many were replaced.
    """
    replaced = sum(sealed.replace(tx, column, cell, value) for cell, value in values)
    sealed.note_progress(tx, column, key_id, after)
    return replaced


def finish(tx: Tx, key_id: bytes, others: Sequence[bytes]) -> bool:
    """The ``others`` seal nothing any more: their files may go. ``False`` if one still does.

    A pass has looked at all columns before. Beside the daemon, commands write two tables (rule E5),
    with the keys of the configuration as it is then; they are small, so they are looked at again.
    """
    columns = (sealed.VERIFY_KEYS, sealed.TOKENS, sealed.PRIVATE_KEYS)
    if any(
        column.is_stale(cell, key_id) for column in columns for cell in sealed.cells(tx, column)
    ):
        return False
    for other in others:
        sealed.drop_sealing_key(tx, other)
    sealed.clear_progress(tx)
    return True
