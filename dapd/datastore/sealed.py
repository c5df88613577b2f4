"""Every value that is sealed at rest, by column, and with which key (I9, rules F2, F3).

The one table of it, ``COLUMNS``, serves whatever must visit all of them: sealing them again with
another key, forgetting a key, verifying a backup. A value without its owner's row has no AAD and is
not visited. Left out: what a column means, which its own table module knows.
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
    """A field that holds a sealed value or, in ``chunk_rows``, those of many reports.

    ``facts`` is what its AADs are made of.
    """

    pk: int
    value: bytes = field(repr=False)
    facts: Sequence[Any] = field(repr=False)


@dataclass(frozen=True, slots=True)
class Column:
    """A sealed column: its queries, and how its AAD is made of a cell's facts."""

    name: str
    sizes: str
    page: str
    replace: str
    aad: Callable[..., bytes]

    def key_ids(self, cell: Cell) -> dict[bytes, int]:
        """How many values of a cell each key sealed. Raises ``ValueError`` if it is damaged."""
        if self is CHUNK_ROWS:
            _, ids, lengths = cell.facts
            return dict(row_key_ids(ids, lengths, cell.value))
        return {seal_key_id_of(cell.value): 1}

    def resealed(self, sealer: Sealer, cell: Cell) -> bytes:
        """The same, sealed with the first key. Raises ``ValueError`` if something does not open."""
        if self is CHUNK_ROWS:
            task_id, ids, lengths = cell.facts
            return reseal_rows(sealer, task_id, ids, lengths, cell.value)
        aad = self.aad(*cell.facts)
        return sealer.seal(aad, sealer.open(aad, cell.value))

    def is_stale(self, cell: Cell, key_id: bytes) -> bool:
        """Whether something in it is sealed with another key. Raises ``ValueError``."""
        return set(self.key_ids(cell)) != {key_id}


def _column(name: str, pk: str, facts: str, aad: Callable[..., bytes], source: str = "") -> Column:
    """The column ``name`` of the row ``pk``; ``source`` adds the tables that its facts are in."""
    table, _, value = name.partition(".")
    row, held = f"{table}.{pk}", f"{table}.{value}"
    # An empty value is one whose key was forgotten.
    chosen = f"FROM {table} {source} WHERE {row} > :after AND length({held}) > 0"
    return Column(
        name,
        sizes=f"SELECT {row}, length({held}) {chosen} ORDER BY {row} LIMIT :size",
        page=f"SELECT {row}, {held}, {facts} {chosen} AND {row} <= :until ORDER BY {row}",
        replace=f"UPDATE {table} SET {value} = :new WHERE {pk} = :pk AND {value} = :old",  # noqa: S608
        aad=aad,
    )


_OF_TASK = "CROSS JOIN tasks USING (task_pk)"  # CROSS: in this order, so that pages cost the same
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


def page(tx: Tx, column: Column, after: int) -> list[Cell]:
    """The next cells by key, of at most ``PAGE_BYTES`` in sum; one that is larger comes alone."""
    until, total = after, 0
    for pk, size in tx.all(column.sizes, after=after, size=PAGE_CELLS):
        total += size
        if total > PAGE_BYTES and until > after:
            break
        until = pk
    rows = tx.all(column.page, after=after, until=until)
    return [Cell(pk, value, facts) for pk, value, *facts in rows]


def cells(tx: Tx, column: Column) -> Iterator[Cell]:
    """All cells of a column, one page in memory at a time."""
    after = -1
    while found := page(tx, column, after):
        yield from found
        after = found[-1].pk


def usage(tx: Tx) -> dict[str, Counter[bytes]]:
    """How many values each key sealed, by column. Raises ``DatastoreError`` for a damaged one."""
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
    """Open all that is sealed; how many values each column has.

    Raises ``DatastoreError`` that names the first one that does not open, and its key if that is
    what is missing.
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
    """Put ``value`` into a cell that is still as it was read; whether it was."""
    return bool(tx.execute(column.replace, pk=cell.pk, old=cell.value, new=value))


def sealing_key_ids(tx: Tx) -> list[bytes]:
    """The ids of the keys that some value may be sealed with (rule F2)."""
    return [row[0] for row in tx.all(_Q_KEY_IDS)]


def note_sealing_key(tx: Tx, key_id: bytes) -> None:
    """From now on values may be sealed with this key."""
    tx.execute(_Q_NOTE_KEY, key_id=key_id)


def drop_sealing_key(tx: Tx, key_id: bytes) -> None:
    """Nothing is sealed with this key any more."""
    tx.execute(_Q_DROP_KEY, key_id=key_id)


def progress(tx: Tx, key_id: bytes) -> dict[str, int]:
    """Up to which row each column has been sealed again with this key."""
    return dict(tx.all(_Q_PROGRESS, key_id=key_id))


def note_progress(tx: Tx, column: Column, key_id: bytes, after: int) -> None:
    """All rows up to ``after`` are done."""
    tx.execute(_Q_NOTE_PROGRESS, name=column.name, key_id=key_id, after=after)


def clear_progress(tx: Tx) -> None:
    """The next pass begins anew."""
    tx.execute(_Q_CLEAR_PROGRESS)


def _damaged(column: Column, cell: Cell, error: ValueError) -> DatastoreError:
    return DatastoreError(
        f"{column.name} of row {cell.pk} does not open: {error}; `dapd datastore keys` shows which "
        "keys the database needs, `dapd datastore check` what else is damaged"
    )
