"""The lock of a database (rule E5), and its recorded commit sequence, which reveals old copies.

One daemon owns a database by a lock on ``<db>.lock``. The lock is never on the database itself,
because opening and closing that file ourselves would drop SQLite's own POSIX locks. The lock file
has three lines: the commit sequence and the settled one, each at a fixed width, and a description
of the holder, for the error message of a second process. A database whose own sequence is lower
than the recorded one lacks commits: it is an older copy. The settled sequence is what the database
has without its WAL; if it has less, the WAL is another copy's. ``dapd.datastore.sqlite`` computes
the sequences.
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
_LINE = _WIDTH + 1
_LONGEST = 4096


class FileLock:
    """A held lock, which ``close`` or the end of the process releases.

    ``sequence`` and ``settled`` are the recorded sequences; 0 if there was none, or an unreadable
    one.
    """

    def __init__(self, descriptor: int, holder: str) -> None:
        self._descriptor = descriptor
        self.sequence = _parse(os.pread(descriptor, _LINE, 0))
        self.settled = _parse(os.pread(descriptor, _LINE, _LINE))
        self._lead = 0
        self._found = 0
        self._wal: bytes | None = None
        self._synced_at = time.monotonic()
        record = f"{self.sequence:0{_WIDTH}}\n{self.settled:0{_WIDTH}}\n{holder}\n".encode()
        os.pwrite(descriptor, record, 0)
        os.ftruncate(descriptor, len(record))

    def compare(self, found: int, wal: bytes | None) -> bool:
        """Return whether a file with the sequence ``found`` is behind the record.

        If so, the record stays ahead by the same distance with every commit, until ``accept``.
        ``wal`` is as in ``note``.
        """
        self._found, self._wal = found, wal
        self._lead = max(self.sequence - found, 0)
        return self._lead > 0

    def settle(self, found: int) -> None:
        """Record the sequence of a file that has no WAL."""
        self._record(self.sequence, found)

    def note(self, found: int, wal: bytes | None) -> None:
        """Record that a commit has raised the file's own sequence to ``found``. Never raises.

        ``wal`` is another value once SQLite has begun the WAL anew, and ``None`` if unknown. All
        that was committed before is in the database itself then, and on the disk.
        """
        begun_anew = None not in (wal, self._wal) and wal != self._wal
        settled = self._found if begun_anew else self.settled
        self._found, self._wal = found, wal
        if found + self._lead > self.sequence or begun_anew:
            self._record(max(found + self._lead, self.sequence), settled)

    def accept(self, found: int) -> None:
        """Record the file's own sequence, once everything that it may lack is quarantined."""
        self._lead = 0
        self._record(found, self.settled)
        self._sync()

    def close(self) -> None:
        """Write the record to the disk and release the lock."""
        self._sync()
        os.close(self._descriptor)

    def _record(self, sequence: int, settled: int) -> None:
        # The commit is valid even if this fails; the next commit writes the record again.
        with suppress(OSError):
            os.pwrite(self._descriptor, f"{sequence:0{_WIDTH}}\n{settled:0{_WIDTH}}".encode(), 0)
            self.sequence, self.settled = sequence, settled
        # No fsync per commit: a power loss can make the record too low, but never too high.
        if time.monotonic() - self._synced_at >= _SYNC_EVERY:
            self._sync()

    def _sync(self) -> None:
        self._synced_at = time.monotonic()
        with suppress(OSError):
            os.fsync(self._descriptor)


def lock_path(database: Path) -> Path:
    """Return the path of the lock file, which is beside the database."""
    return database.with_name(database.name + ".lock")


def try_lock(database: Path, holder: str) -> FileLock | None:
    """Take the lock and write ``holder`` into its file; ``None`` if another process has the lock.

    Raises ``DatastoreError`` if the lock file can't be created or written.
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
    try:
        return FileLock(descriptor, holder)
    except OSError as error:
        os.close(descriptor)
        raise DatastoreError(f"{path}: {error.strerror}; is the disk full?") from error


def holder_of(database: Path) -> str:
    """Return the description that the lock's holder wrote into the lock file."""
    try:
        with lock_path(database).open("rb") as file:
            *_, holder = file.read(_LONGEST).rstrip(b"\n").split(b"\n")
    except OSError:
        return "another process"
    return holder.decode(errors="replace").strip() or "another process"


def _parse(line: bytes) -> int:
    text = line[:_WIDTH]
    whole = len(line) == _LINE and line.endswith(b"\n") and text.isdigit()
    return int(text) if whole else 0
