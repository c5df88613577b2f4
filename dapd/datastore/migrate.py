"""Numbered schema files, each applied once, in order, all or nothing.

A database that is newer than the program is refused: it may hold what this program would break.
"""

from __future__ import annotations

import re
import sqlite3
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path

from dapd.datastore.engines import APPLICATION_ID
from dapd.errors import DatastoreError

_NAME = re.compile(r"(\d{4})_(\w+)\.sqlite\.sql")
_STATEMENT_END = re.compile(r";[ \t]*(?:--[^\n]*)?\n")

_Q_VERSION = "SELECT max(version) FROM schema_migrations"
_Q_VERSIONS_TABLE = """
CREATE TABLE IF NOT EXISTS schema_migrations (
    version INTEGER PRIMARY KEY, name TEXT NOT NULL, applied_at INTEGER NOT NULL
)"""
_Q_APPLIED = (
    "INSERT INTO schema_migrations (version, name, applied_at) VALUES (:version, :name, :now)"
)


@dataclass(frozen=True, slots=True)
class Migration:
    """One schema file; a statement ends at a semicolon that ends its line."""

    version: int
    name: str
    statements: list[str]


def migrations() -> list[Migration]:
    """The schema files that this program carries, in order."""
    found = []
    for resource in files("dapd.datastore").joinpath("schema").iterdir():
        if match := _NAME.fullmatch(resource.name):
            text = resource.read_text()
            statements = [part for part in _STATEMENT_END.split(text) if part.strip()]
            found.append(Migration(int(match[1]), match[2], statements))
    return sorted(found, key=lambda migration: migration.version)


def schema_version(connection: sqlite3.Connection) -> int:
    """The newest migration that the file has; 0 for an empty file."""
    tables = connection.execute(
        "SELECT count(*) FROM sqlite_master WHERE name = 'schema_migrations'"
    ).fetchone()[0]
    return int(connection.execute(_Q_VERSION).fetchone()[0] or 0) if tables else 0


def check_version(connection: sqlite3.Connection, path: Path, *, may_be_older: bool) -> None:
    """Raise ``DatastoreError`` if this program can't work on the file's schema."""
    known = migrations()[-1].version
    found = schema_version(connection)
    if found > known:
        raise DatastoreError(
            f"{path} has schema {found}, newer than this dapd, which knows {known}; "
            "run the dapd that wrote it, or a newer one"
        )
    if found < known and not may_be_older:
        raise DatastoreError(
            f"{path} has schema {found}, this dapd needs {known}; "
            "restart the daemon with this version of dapd, which migrates it"
        )


def migrate(connection: sqlite3.Connection, path: Path, now: int) -> list[str]:
    """Apply what is missing in one transaction; the names of the migrations applied."""
    check_version(connection, path, may_be_older=True)
    applied = []
    try:
        connection.execute("BEGIN IMMEDIATE")
        connection.execute(f"PRAGMA application_id = {APPLICATION_ID}")
        connection.execute(_Q_VERSIONS_TABLE)
        found = schema_version(connection)
        for migration in migrations():
            if migration.version > found:
                for statement in migration.statements:
                    connection.execute(statement)
                connection.execute(
                    _Q_APPLIED, {"version": migration.version, "name": migration.name, "now": now}
                )
                applied.append(f"{migration.version:04d}_{migration.name}")
        connection.execute("COMMIT")
    except sqlite3.Error as error:
        if connection.in_transaction:
            connection.execute("ROLLBACK")
        raise DatastoreError(
            f"{path}: the schema could not be brought up to date: {error}"
        ) from error
    return applied
