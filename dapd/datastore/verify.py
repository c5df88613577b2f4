"""Verify that a backup can be restored, without changing it, for ``dapd backup verify``."""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

from dapd.crypto import Sealer
from dapd.datastore import safe_clock, sealed
from dapd.datastore.backup import connect_read_only
from dapd.datastore.check import check
from dapd.datastore.migrate import check_version, schema_of
from dapd.datastore.sqlite import Tx, commit_sequence
from dapd.errors import DatastoreError
from dapd.reports import ReplayIndex

_COUNTED = (
    "tasks",
    "hpke_keypairs",
    "report_chunks",
    "aggregation_jobs",
    "batch_shares",
    "collected",
    "collection_jobs",
    "aggregate_share_jobs",
)


@dataclass(frozen=True, slots=True)
class Verified:
    """A good backup's contents. ``state_of`` is in ms, ``None`` if no daemon ever ran on it."""

    schema: int
    sequence: int
    state_of: int | None
    rows: dict[str, int]
    """The number of rows, by table."""
    opened: dict[str, int]
    """The number of sealed values, all of which opened, by column."""


def verify(path: Path, sealer: Sealer, key_ids: Sequence[bytes]) -> Verified:
    """Check every row, and open every sealed value with ``sealer``, whose keys are ``key_ids``.

    Raises ``DatastoreError`` that says what is wrong.
    """
    wal = path.with_name(f"{path.name}-wal")
    if wal.exists() and wal.stat().st_size:
        raise DatastoreError(
            f"{path}: there is {wal.name} beside it, so this is a database in use, or a copy made "
            "by hand; verify a backup made by `dapd backup`"
        )
    try:
        return _look(path, sealer, key_ids)
    except sqlite3.Error as error:
        raise DatastoreError(f"{path} is a bad backup: {error}; use an older one") from error


def _look(path: Path, sealer: Sealer, key_ids: Sequence[bytes]) -> Verified:
    with closing(connect_read_only(path)) as connection:
        tx = Tx(connection, ReplayIndex())
        check_version(connection, path, may_be_older=True)
        for finding in check(tx):
            where = f"{finding.table} {finding.key}: " if finding.table else ""
            raise DatastoreError(
                f"{path} is a bad backup: {where}{finding.problem}; use an older one, and see "
                "whether `dapd datastore check` finds the same in the database"
            )
        _require_keys(tx, path, key_ids)
        return Verified(
            schema_of(connection)[0],
            commit_sequence(tx),
            safe_clock.load(tx),
            {name: _count(tx, name) for name in _COUNTED},
            sealed.open_every_value(tx, sealer),
        )


def _require_keys(tx: Tx, path: Path, key_ids: Sequence[bytes]) -> None:
    missing = [key_id.hex() for key_id in sealed.sealing_key_ids(tx) if key_id not in key_ids]
    if missing:
        raise DatastoreError(
            f"{path} contains values sealed with key {', '.join(missing)}, which is not in "
            "[datastore] sealing_keys; without that key's file the backup is useless"
        )


def _count(tx: Tx, table: str) -> int:
    row = tx.one(f"SELECT count(*) FROM {table}")  # noqa: S608 - constants alone
    assert row is not None
    return int(row[0])
