"""Migration of a database by numbered schema files, each applied once, in order, all or nothing.

A migration expands first and contracts one release later, so that an upgrade can be undone. Each
file says in its first lines ``-- compatible_from: N``: programs that know schema N or newer can run
on a database with this schema (without that line, N is the file's own number). An older program
refuses such a database, because it might break its data. ADR 0019.
"""

from __future__ import annotations

import re
import sqlite3
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path

from dapd.datastore.sqlite import APPLICATION_ID, Tx, commit_sequence
from dapd.errors import DatastoreError, UnfitDatastore
from dapd.reports import ReplayIndex

_NAME = re.compile(r"(\d{4})_(\w+)\.sqlite\.sql")
_COMPATIBLE_FROM = re.compile(r"-- compatible_from: (\d+)")
_STATEMENT_END = re.compile(r";[ \t]*(?:--[^\n]*)?\n")

_Q_NEWEST = "SELECT version, compatible_from FROM schema_migrations ORDER BY version DESC LIMIT 1"
_Q_VERSIONS_TABLE = """
CREATE TABLE IF NOT EXISTS schema_migrations (
    version INTEGER PRIMARY KEY, name TEXT NOT NULL, applied_at INTEGER NOT NULL,
    compatible_from INTEGER NOT NULL  -- what a program must know to run on it
)"""
_Q_APPLIED = """
INSERT INTO schema_migrations (version, name, applied_at, compatible_from)
VALUES (:version, :name, :now, :compatible_from)"""
_Q_KEEP_SEQUENCE = "INSERT INTO sqlite_sequence (name, seq) VALUES (:name, :lost)"


@dataclass(frozen=True, slots=True)
class Migration:
    """One schema file. A statement ends at a semicolon at the end of a line."""

    version: int
    name: str
    statements: list[str]
    compatible_from: int


def migrations() -> list[Migration]:
    """Return the schema files of this program, in order."""
    found = [
        parse(int(match[1]), match[2], resource.read_text())
        for resource in files("dapd.datastore").joinpath("schema").iterdir()
        if (match := _NAME.fullmatch(resource.name))
    ]
    return sorted(found, key=lambda migration: migration.version)


def parse(version: int, name: str, text: str) -> Migration:
    """Parse a schema file. ``compatible_from`` is in a comment before the first statement."""
    statements = [part for part in _STATEMENT_END.split(text) if part.strip()]
    said = _COMPATIBLE_FROM.search(statements[0])
    return Migration(version, name, statements, int(said[1]) if said else version)


def schema_of(connection: sqlite3.Connection) -> tuple[int, int]:
    """Return the database's schema version and its ``compatible_from``; (0, 0) if it has none."""
    tables = connection.execute(
        "SELECT count(*) FROM sqlite_master WHERE name = 'schema_migrations'"
    ).fetchone()[0]
    newest = connection.execute(_Q_NEWEST).fetchone() if tables else None
    return (int(newest[0]), int(newest[1])) if newest else (0, 0)


def check_version(
    connection: sqlite3.Connection,
    path: Path,
    *,
    may_be_older: bool,
    carried: Sequence[Migration] | None = None,
) -> None:
    """Raise ``DatastoreError`` if this program can't use a database with this schema."""
    known = (carried or migrations())[-1].version
    found, compatible_from = schema_of(connection)
    if compatible_from > known:
        raise UnfitDatastore(
            f"{path} has schema {found}, newer than this dapd, which knows {known} but needs at "
            f"least {compatible_from}; run the dapd that upgraded it, or `dapd restore` the copy "
            f"that the upgrade made beside it ({path.name}.before-schema-...)"
        )
    if found < known and not may_be_older:
        raise DatastoreError(
            f"{path} has schema {found}, but this dapd needs {known}; "
            "restart the daemon with this version of dapd, which migrates the database"
        )


def pending(
    connection: sqlite3.Connection, carried: Sequence[Migration] | None = None
) -> list[Migration]:
    """Return the migrations that ``migrate`` would apply, in order."""
    found, _ = schema_of(connection)
    return [migration for migration in carried or migrations() if migration.version > found]


def migrate(
    connection: sqlite3.Connection,
    path: Path,
    now: int,
    carried: Sequence[Migration] | None = None,
) -> list[str]:
    """Apply the missing migrations in one transaction, and return their names.

    ``now`` is in milliseconds; ``carried`` are ``migrations()`` unless given. Raises
    ``DatastoreError``; then the database is unchanged.
    """
    check_version(connection, path, may_be_older=True, carried=carried)
    if not pending(connection, carried):
        return []  # without a transaction, which would need room on the disk
    applied = []
    try:
        connection.execute("BEGIN IMMEDIATE")
        connection.execute(f"PRAGMA application_id = {APPLICATION_ID}")
        connection.execute(_Q_VERSIONS_TABLE)
        for migration in pending(connection, carried):
            _apply(connection, migration, now)
            applied.append(f"{migration.version:04d}_{migration.name}")
        connection.execute("COMMIT")
    except sqlite3.Error as error:
        if connection.in_transaction:
            connection.execute("ROLLBACK")
        raise DatastoreError(
            f"{path}: the schema could not be brought up to date: {error}; the database is "
            "unchanged; run the dapd that used it before"
        ) from error
    return applied


def _apply(connection: sqlite3.Connection, migration: Migration, now: int) -> None:
    tx = Tx(connection, ReplayIndex())
    before = commit_sequence(tx) if schema_of(connection)[0] else 0
    for statement in migration.statements:
        connection.execute(statement)
    tx.execute(
        _Q_APPLIED,
        version=migration.version,
        name=migration.name,
        now=now,
        compatible_from=migration.compatible_from,
    )
    # Dropping a table drops its sequence too, which would make the database look like an old copy.
    if (lost := before - commit_sequence(tx)) > 0:
        tx.execute(_Q_KEEP_SEQUENCE, name=f"dropped by schema {migration.version}", lost=lost)
