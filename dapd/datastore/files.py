"""File operations on copies of a database: create, remove, sync.

They are only for copies that no process has open; only SQLite opens a live database (rule E5).
"""

from __future__ import annotations

import os
from pathlib import Path

BESIDE = ("-wal", "-shm")
"""The suffixes of the files that SQLite may leave beside a database."""


def remove(database: Path) -> None:
    """Remove a database and SQLite's files beside it, if they exist."""
    for suffix in ("", *BESIDE):
        database.with_name(database.name + suffix).unlink(missing_ok=True)


def sync(path: Path) -> None:
    """Write a file, or a directory's list of entries, to the disk."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def create_private(path: Path) -> None:
    """Create an empty file that only this user can read, for SQLite to fill.

    Raises ``FileExistsError``, and does not change an existing file.
    """
    os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))


def read_only_uri(database: Path) -> str:
    """Return a URI with which ``sqlite3.connect`` opens the database read-only.

    If it has no WAL, SQLite creates no files beside it, so it may be on a read-only medium.
    """
    has_wal = database.with_name(f"{database.name}-wal").exists()
    return f"{database.absolute().as_uri()}?mode=ro{'' if has_wal else '&immutable=1'}"
