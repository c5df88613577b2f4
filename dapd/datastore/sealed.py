"""All values that are sealed at rest, by column, and the keys that seal them (I9, rules F2, F3).

Operations that visit every sealed value go by ``COLUMNS``: resealing, forgetting a key, verifying a
backup. They skip a value without its owner's row, which has no AAD.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from dapd.crypto import (
    Sealer,
    batch_share_aad,
    chunk_row_aad,
    collection_share_aad,
    hpke_private_key_aad,
    leader_state_aad,
    reseal_rows,
    row_key_ids,
    seal_key_id_of,
    token_aad,
    verify_key_aad,
)
from dapd.datastore.sqlite import Tx
from dapd.errors import DatastoreError

PAGE_CELLS = 256
PAGE_BYTES = 512 * 1024

_Q_KEY_IDS = "SELECT key_id FROM sealing_keys ORDER BY key_id"
_Q_NOTE_KEY = "INSERT INTO sealing_keys (key_id) VALUES (:key_id) ON CONFLICT DO NOTHING"
_Q_DROP_KEY = "DELETE FROM sealing_keys WHERE key_id = :key_id"
_Q_PROGRESS = "SELECT name, after_pk FROM reseal_progress WHERE key_id = :key_id"
_Q_NOTE_PROGRESS = """
INSERT INTO reseal_progress (name, key_id, after_pk) VALUES (:name, :key_id, :after)
ON CONFLICT (name) DO UPDATE SET key_id = excluded.key_id, after_pk = excluded.after_pk"""
_Q_CLEAR_PROGRESS = "DELETE FROM reseal_progress"


@dataclass(frozen=True, slots=True)
class Cell:
    """A field with a sealed value or, in ``chunk_rows``, those of many reports.

    ``facts`` are the values that its AADs are made of.
    """

    pk: int
    value: bytes = field(repr=False)
    facts: Sequence[Any] = field(repr=False)


@dataclass(frozen=True, slots=True)
class Column:
    """A sealed column: its queries, and the function that builds its AAD from a cell's facts."""

    name: str
    sizes: str
    page: str
    replace: str
    aad: Callable[..., bytes]

    def key_ids(self, cell: Cell) -> dict[bytes, int]:
        """Count a cell's values by key. Raises ``ValueError`` if the cell is damaged."""
        if self is CHUNK_ROWS:
            _, ids, lengths = cell.facts
            return dict(row_key_ids(ids, lengths, cell.value))
        return {seal_key_id_of(cell.value): 1}

    def resealed(self, sealer: Sealer, cell: Cell) -> bytes:
        """Reseal a cell with the first key. Raises ``ValueError`` if a value does not open."""
        if self is CHUNK_ROWS:
            task_id, ids, lengths = cell.facts
            return reseal_rows(sealer, task_id, ids, lengths, cell.value)
        aad = self.aad(*cell.facts)
        return sealer.seal(aad, sealer.open(aad, cell.value))

    def is_stale(self, cell: Cell, key_id: bytes) -> bool:
        """Return whether a value in the cell is sealed with another key. Raises ``ValueError``."""
        return set(self.key_ids(cell)) != {key_id}


def _column(name: str, pk: str, facts: str, aad: Callable[..., bytes], source: str = "") -> Column:
    """Build the queries of a column; ``source`` joins the tables that contain its facts."""
    table, _, value = name.partition(".")
    row, held = f"{table}.{pk}", f"{table}.{value}"
    # If a value is empty, its key was forgotten.
    chosen = f"FROM {table} {source} WHERE {row} > :after AND length({held}) > 0"
    return Column(
        name,
        sizes=f"SELECT {row}, length({held}) {chosen} ORDER BY {row} LIMIT :size",
        page=f"SELECT {row}, {held}, {facts} {chosen} AND {row} <= :until ORDER BY {row}",
        replace=f"UPDATE {table} SET {value} = :new WHERE {pk} = :pk AND {value} = :old",  # noqa: S608
        aad=aad,
    )


_OF_TASK = "CROSS JOIN tasks USING (task_pk)"  # CROSS: in this order, for cheap pages
VERIFY_KEYS = _column("tasks.verify_key", "task_pk", "task_id", verify_key_aad)
TOKENS = _column("tasks.aggregator_token", "task_pk", "task_id", token_aad)
PRIVATE_KEYS = _column(
    "hpke_keypairs.private_key", "config_id", "config_id, public_key", hpke_private_key_aad
)
COLLECTION_SHARES = _column(
    "collection_jobs.leader_share", "collection_pk", "task_id, id", collection_share_aad, _OF_TASK
)
BATCH_SHARES = _column(
    "batch_shares.share", "share_pk", "task_id, job_id, bucket", batch_share_aad, _OF_TASK
)
LEADER_STATES = _column(
    "job_bodies.leader_state", "job_pk", "task_id, id", leader_state_aad,
    f"CROSS JOIN aggregation_jobs USING (job_pk) {_OF_TASK}",
)  # fmt: skip
CHUNK_ROWS = _column(
    "chunk_rows.rows", "chunk_pk", "task_id, ids, lengths", chunk_row_aad,
    f"CROSS JOIN report_chunks USING (chunk_pk) {_OF_TASK}",
)  # fmt: skip

COLUMNS = (
    VERIFY_KEYS,
    TOKENS,
    PRIVATE_KEYS,
    COLLECTION_SHARES,
    BATCH_SHARES,
    LEADER_STATES,
    CHUNK_ROWS,
)


def page(tx: Tx, column: Column, after: int, most: int = PAGE_CELLS) -> list[Cell]:
    """Return the next cells by key: ``most`` or ``PAGE_BYTES`` at most, or one larger cell."""
    until, total = after, 0
    for pk, size in tx.all(column.sizes, after=after, size=most):
        total += size
        if total > PAGE_BYTES and until > after:
            break
        until = pk
    rows = tx.all(column.page, after=after, until=until)
    return [Cell(pk, value, facts) for pk, value, *facts in rows]


def cells(tx: Tx, column: Column) -> Iterator[Cell]:
    """Yield all cells of a column, with one page in memory at a time."""
    after = -1
    while found := page(tx, column, after):
        yield from found
        after = found[-1].pk


def usage(tx: Tx) -> dict[str, Counter[bytes]]:
    """Count the values of each key, by column. Raises ``DatastoreError`` for a damaged value."""
    counted = {}
    for column in COLUMNS:
        counts: Counter[bytes] = Counter()
        for cell in cells(tx, column):
            try:
                counts.update(column.key_ids(cell))
            except ValueError as error:
                raise _damaged(column, cell, error) from error
        counted[column.name] = counts
    return counted


def open_every_value(tx: Tx, sealer: Sealer) -> dict[str, int]:
    """Open every sealed value, and return their number by column.

    Raises ``DatastoreError`` that names the first value that does not open, and its key if that is
    missing.
    """
    opened = {}
    for column in COLUMNS:
        opened[column.name] = 0
        for cell in cells(tx, column):
            try:
                column.resealed(sealer, cell)
                opened[column.name] += sum(column.key_ids(cell).values())
            except ValueError as error:
                raise _damaged(column, cell, error) from error
    return opened


def replace(tx: Tx, column: Column, cell: Cell, value: bytes) -> bool:
    """Store ``value`` in a cell unless that has changed since; return whether it was stored."""
    return bool(tx.execute(column.replace, pk=cell.pk, old=cell.value, new=value))


def sealing_key_ids(tx: Tx) -> list[bytes]:
    """Return the ids of the keys that some value may be sealed with (rule F2)."""
    return [row[0] for row in tx.all(_Q_KEY_IDS)]


def note_sealing_key(tx: Tx, key_id: bytes) -> None:
    """Note that values may be sealed with this key from now on."""
    tx.execute(_Q_NOTE_KEY, key_id=key_id)


def drop_sealing_key(tx: Tx, key_id: bytes) -> None:
    """Note that no value is sealed with this key any more."""
    tx.execute(_Q_DROP_KEY, key_id=key_id)


def progress(tx: Tx, key_id: bytes) -> dict[str, int]:
    """Return the row up to which each column is resealed with this key."""
    return dict(tx.all(_Q_PROGRESS, key_id=key_id))


def note_progress(tx: Tx, column: Column, key_id: bytes, after: int) -> None:
    """Note that a column's rows up to ``after`` are resealed."""
    tx.execute(_Q_NOTE_PROGRESS, name=column.name, key_id=key_id, after=after)


def clear_progress(tx: Tx) -> None:
    """Let the next pass start from the beginning."""
    tx.execute(_Q_CLEAR_PROGRESS)


def _damaged(column: Column, cell: Cell, error: ValueError) -> DatastoreError:
    return DatastoreError(
        f"{column.name} of row {cell.pk} does not open: {error}; `dapd datastore keys` shows which "
        "keys the database needs, `dapd datastore check` what else is damaged"
    )
