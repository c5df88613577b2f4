"""One SQLite file belongs to one daemon: a lock on ``<db>.lock`` (rule E5).

The lock is never on the database file itself: opening and closing that by hand drops SQLite's own
POSIX locks. The holder writes who it is into the lock file, so that a second one can say it.
"""

from __future__ import annotations

import fcntl
import os
from pathlib import Path

from dapd.errors import DatastoreError


class FileLock:
    """Held while this object is open; released by ``close`` or by the process' end."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor

    def close(self) -> None:
        os.close(self._descriptor)


def lock_path(database: Path) -> Path:
    """Beside the database, never the database itself."""
    return database.with_name(database.name + ".lock")


def try_lock(database: Path, holder: str) -> FileLock | None:
    """Take the lock and write ``holder`` into its file, or ``None`` if another process has it.

    Raises ``DatastoreError`` if the directory can't be written to.
    """
    path = lock_path(database)
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise DatastoreError(
            f"{path}: {error.strerror}; create the directory and let this user write to it"
        ) from error
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        return None
    os.ftruncate(descriptor, 0)
    os.pwrite(descriptor, f"{holder}\n".encode(), 0)
    return FileLock(descriptor)


def holder_of(database: Path) -> str:
    """What the holder of the lock said about itself."""
    try:
        return lock_path(database).read_text(errors="replace").strip() or "another process"
    except OSError:
        return "another process"
