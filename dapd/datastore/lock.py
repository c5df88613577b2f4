"""One SQLite file belongs to one daemon: a lock on ``<db>.lock`` (rule E5), and the commit sequence
that tells an older copy of the file from the file itself.

The lock is never on the database file: opening and closing that by hand drops SQLite's own POSIX
locks. Its file holds two lines: the commit sequence, ever as wide, and who the holder is, so that a
second one can say it. A database whose own sequence is below the recorded one has forgotten
commits: somebody put an older copy there. Left out: where a sequence comes from
(``dapd.datastore.sqlite``) and what is done about a file that is behind.
"""

from __future__ import annotations

import fcntl
import os
import time
from contextlib import suppress
from pathlib import Path

from dapd.errors import DatastoreError

_SYNC_EVERY = 60.0
_WIDTH = 20
_HOLDER_AT = _WIDTH + 1
_LONGEST = 4096


class FileLock:
    """Held while this object is open; released by ``close`` or by the process' end.

    ``sequence`` is the recorded commit sequence; 0 if none, or an unreadable one, was there.
    """

    def __init__(self, descriptor: int, holder: str) -> None:
        self._descriptor = descriptor
        self.sequence = _parse(os.pread(descriptor, _HOLDER_AT, 0))
        self._lead = 0
        self._synced_at = time.monotonic()
        record = f"{self.sequence:0{_WIDTH}}\n{holder}\n".encode()
        os.pwrite(descriptor, record, 0)
        os.ftruncate(descriptor, len(record))

    def compare(self, found: int) -> bool:
        """Whether a file whose own sequence is ``found`` is behind the record.

        If so, the record stays ahead of it by as much, whatever is committed, until ``accept``.
        """
        self._lead = max(self.sequence - found, 0)
        return self._lead > 0

    def note(self, found: int) -> None:
        """A commit has brought the file's own sequence to ``found``. Raises nothing."""
        if found + self._lead > self.sequence:
            self._record(found + self._lead)

    def accept(self, found: int) -> None:
        """What the file has forgotten is dealt with: the record is the file's own sequence."""
        self._lead = 0
        self._record(found)
        self._sync()

    def close(self) -> None:
        """Release the lock; the record is on the disk then."""
        self._sync()
        os.close(self._descriptor)

    def _record(self, sequence: int) -> None:
        # The commit stands whatever becomes of this; the next one writes the record again.
        with suppress(OSError):
            os.pwrite(self._descriptor, f"{sequence:0{_WIDTH}}".encode(), 0)
            self.sequence = sequence
        # No fsync a commit: after a power loss the record may only be too low, never too high.
        if time.monotonic() - self._synced_at >= _SYNC_EVERY:
            self._sync()

    def _sync(self) -> None:
        self._synced_at = time.monotonic()
        with suppress(OSError):
            os.fsync(self._descriptor)


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
    return FileLock(descriptor, holder)


def holder_of(database: Path) -> str:
    """What the holder of the lock said about itself."""
    try:
        with lock_path(database).open("rb") as file:
            _, _, holder = file.read(_LONGEST).partition(b"\n")
    except OSError:
        return "another process"
    return holder.decode(errors="replace").strip() or "another process"


def _parse(line: bytes) -> int:
    text = line[:_WIDTH]
    whole = len(line) == _HOLDER_AT and line.endswith(b"\n") and text.isdigit()
    return int(text) if whole else 0
