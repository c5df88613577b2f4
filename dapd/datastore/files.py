"""A database's files as files: all of them gone, or one of them on the disk for certain.

Only for copies that no process has open: SQLite alone touches a live one (rule E5).
"""

from __future__ import annotations

import os
from pathlib import Path

BESIDE = ("-wal", "-shm")
"""What SQLite may leave beside a database, by the end of its name."""


def remove(database: Path) -> None:
    """The database and what is left beside it, as far as they are there."""
    for suffix in ("", *BESIDE):
        database.with_name(database.name + suffix).unlink(missing_ok=True)


def sync(path: Path) -> None:
    """Return once a file, or what a directory lists, is on the disk."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def create_private(path: Path) -> None:
    """A new, empty file that only this user can read, for SQLite to fill.

    Raises ``FileExistsError``, and leaves alone what is there.
    """
    os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))


def read_only_uri(database: Path) -> str:
    """As ``sqlite3.connect`` opens it without changing it.

    Without a WAL nothing is written beside it, so it may be on a read-only medium.
    """
    has_wal = database.with_name(f"{database.name}-wal").exists()
    return f"{database.absolute().as_uri()}?mode=ro{'' if has_wal else '&immutable=1'}"
