"""Transactions on SQLite: one writer, a few readers, WAL with ``synchronous=FULL``.

``await datastore.run(fn, *args)`` runs ``fn(tx, *args)`` in the writer and returns its result
after the commit; ``read`` does so in a reader. A cancellation that arrives meanwhile waits for the
end, so a caller never sees ``Cancelled`` for a transaction that committed. ``dapd.commits``
contains the transactions; ``dapd.datastore.lock`` keeps the file to one process.
"""

from __future__ import annotations

import sqlite3
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Concatenate, ParamSpec, TypeVar

import trio

from dapd.datastore.lock import FileLock
from dapd.errors import DatastoreError, UnfitDatastore
from dapd.reports import ReplayIndex

P = ParamSpec("P")
T = TypeVar("T")
Row = tuple[Any, ...]

BUSY_TIMEOUT_MS = 5_000
READERS = 4
WAL_LIMIT_BYTES = 64 * 1024 * 1024
COMMITS_BETWEEN_WAL_LOOKS = 100
# "DAPD" in ASCII, to recognise another program's file before changing it.
APPLICATION_ID = 0x44415044
_INCREMENTAL = 2

# Every key is AUTOINCREMENT, so each new row raises this sum, and nothing lowers it.
_Q_SEQUENCE = "SELECT coalesce(sum(seq), 0) FROM sqlite_sequence"


@dataclass(frozen=True, slots=True)
class Pages:
    """A file's numbers of pages. SQLite reuses the ``free`` ones before the file grows."""

    total: int
    free: int


class Tx:
    """One open transaction. If it rolls back, so does the replay index (rule D3)."""

    __slots__ = ("_connection", "replay")

    def __init__(self, connection: sqlite3.Connection, replay: ReplayIndex) -> None:
        self._connection = connection
        self.replay = replay

    def execute(self, sql: str, **parameters: object) -> int:
        """Run one statement and return the number of rows that it changed."""
        return self._connection.execute(sql, parameters).rowcount

    def many(self, sql: str, rows: Iterable[Mapping[str, object]]) -> None:
        """Run a statement that returns no rows, once per mapping of parameters."""
        self._connection.executemany(sql, rows)

    def all(self, sql: str, **parameters: object) -> list[Row]:
        """Return all rows of a query."""
        return self._connection.execute(sql, parameters).fetchall()

    def each(self, sql: str, **parameters: object) -> Iterator[Row]:
        """Yield the rows of a query one by one, within the transaction; not all are in memory."""
        yield from self._connection.execute(sql, parameters)

    def one(self, sql: str, **parameters: object) -> Row | None:
        """Return the first row of a query or of a ``RETURNING`` clause."""
        cursor = self._connection.execute(sql, parameters)
        row: Row | None = cursor.fetchone()
        cursor.close()
        return row

    def pages(self) -> Pages:
        """Return the file's numbers of pages."""
        total, free = (
            self._connection.execute(f"PRAGMA {name}").fetchone()[0]
            for name in ("page_count", "freelist_count")
        )
        return Pages(total, free)

    def give_back(self, most: int, seconds: float) -> int:
        """Remove up to ``most`` free pages from the file within ``seconds``; return their number.

        The file itself becomes shorter with the next checkpoint.
        """
        deadline = time.perf_counter() + seconds
        for given in range(most):
            if time.perf_counter() >= deadline:
                return given
            # Each call frees one page: sqlite3 steps the statement only once, even with a number.
            self._connection.execute("PRAGMA incremental_vacuum")
        return most


class Datastore:
    """A database's connections, which run transactions. ``dapd.datastore.opening`` creates it.

    If this process holds the lock, each commit records its sequence there.
    """

    def __init__(
        self, path: Path, on_lost: Callable[[str], None], held: FileLock | None = None
    ) -> None:
        self.path = path
        self.replay = ReplayIndex()
        self._on_lost = on_lost
        self._held = held
        self._writer = connect(path)
        self._writer_lock = threading.Lock()
        self._writer_limiter = trio.CapacityLimiter(1)
        self._reader_limiter = trio.CapacityLimiter(READERS)
        self._idle_readers: list[sqlite3.Connection] = []
        self._commits = 0

    async def run(
        self, fn: Callable[Concatenate[Tx, P], T], *args: P.args, **kwargs: P.kwargs
    ) -> T:
        """Run a transaction and return its result after the commit.

        Raises what ``fn`` raises, after rolling everything back, or ``DatastoreError``.
        """
        return await trio.to_thread.run_sync(
            lambda: self.run_sync(fn, *args, **kwargs), limiter=self._writer_limiter
        )

    async def read(
        self, fn: Callable[Concatenate[Tx, P], T], *args: P.args, **kwargs: P.kwargs
    ) -> T:
        """Run a read-only transaction, beside the writer."""
        return await trio.to_thread.run_sync(
            lambda: self.read_sync(fn, *args, **kwargs), limiter=self._reader_limiter
        )

    def run_sync(self, fn: Callable[Concatenate[Tx, P], T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Do what ``run`` does, but in the calling thread."""
        with self._writer_lock:
            return self._transact(lambda tx: fn(tx, *args, **kwargs))

    def read_sync(
        self, fn: Callable[Concatenate[Tx, P], T], *args: P.args, **kwargs: P.kwargs
    ) -> T:
        """Do what ``read`` does, but in the calling thread."""
        try:
            connection = self._idle_readers.pop()
        except IndexError:
            connection = self._reader()
        try:
            connection.execute("BEGIN")
            try:
                return fn(Tx(connection, self.replay), *args, **kwargs)
            finally:
                connection.execute("ROLLBACK")
        except sqlite3.Error as error:
            raise explain(error, self.path) from error
        finally:
            self._idle_readers.append(connection)

    async def data_version(self) -> int:
        """Return a number that changes whenever another process commits to the file (rule E5)."""

        def look() -> int:
            with self._writer_lock:
                return int(self._writer.execute("PRAGMA data_version").fetchone()[0])

        return await trio.to_thread.run_sync(look, limiter=self._writer_limiter)

    def close(self) -> None:
        """Close every connection; the last one moves the WAL into the file."""
        for reader in self._idle_readers:
            reader.close()
        self._idle_readers.clear()
        self._writer.close()

    def _reader(self) -> sqlite3.Connection:
        connection = connect(self.path)
        connection.execute("PRAGMA query_only = ON")
        return connection

    def _transact(self, fn: Callable[[Tx], T]) -> T:
        connection = self._writer
        committing = committed = False
        try:
            connection.execute("BEGIN IMMEDIATE")
            changes = connection.total_changes
            tx = Tx(connection, self.replay)
            result = fn(tx)
            changed = connection.total_changes != changes
            sequence = commit_sequence(tx) if self._held and changed else None
            committing = True
            connection.execute("COMMIT")
            committed = True
        except sqlite3.Error as error:
            explained = explain(error, self.path)
            if committing and _is_io_error(error):
                # D3: we can't know whether the commit is on the disk; a restart finds out.
                self._on_lost(str(explained))
            raise explained from error
        finally:
            if committed:
                self.replay.commit()
            else:
                self._undo(connection)
        if self._held and sequence is not None:
            self._held.note(sequence, wal_identity(self.path))
        self._watch_wal(connection)
        return result

    def _undo(self, connection: sqlite3.Connection) -> None:
        try:
            if connection.in_transaction:
                connection.execute("ROLLBACK")
        finally:
            self.replay.rollback()  # D3: even if ROLLBACK fails

    def _watch_wal(self, connection: sqlite3.Connection) -> None:
        """Shorten a WAL that long readers kept the automatic checkpoint from resetting (rule E5).

        While such a reader, a backup for instance, is still there, nothing is shortened: the writer
        does not wait for it.
        """
        self._commits += 1
        if self._commits % COMMITS_BETWEEN_WAL_LOOKS:
            return
        wal = self.path.with_name(self.path.name + "-wal")
        if wal.exists() and wal.stat().st_size > WAL_LIMIT_BYTES:
            connection.execute("PRAGMA busy_timeout = 0")
            connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
            connection.execute(f"PRAGMA busy_timeout = {BUSY_TIMEOUT_MS}")


def commit_sequence(tx: Tx) -> int:
    """Return a number that every commit with a new row raises, and nothing lowers."""
    row = tx.one(_Q_SEQUENCE)
    assert row is not None
    return int(row[0])


def settled_sequence(path: Path) -> int | None:
    """Return the commit sequence of the file without its WAL; ``None`` if it can't be read."""
    uri = f"{path.absolute().as_uri()}?mode=ro&immutable=1"
    try:
        with closing(sqlite3.connect(uri, uri=True)) as connection:
            return int(connection.execute(_Q_SEQUENCE).fetchone()[0])
    except sqlite3.Error:
        return None


def wal_identity(path: Path) -> bytes | None:
    """Return a value that changes whenever SQLite begins the WAL anew: empty if there is no WAL,
    ``None`` if it can't be read.

    These are the salts in its header. SQLite has no lock on this file that closing it would drop.
    """
    try:
        with path.with_name(path.name + "-wal").open("rb") as wal:
            return wal.read(24)[16:]
    except FileNotFoundError:
        return b""
    except OSError:
        return None


def connect(path: Path) -> sqlite3.Connection:
    """Connect with dapd's settings. Raises ``DatastoreError`` unless it is a dapd database."""
    try:
        connection = sqlite3.connect(
            path, isolation_level=None, check_same_thread=False, cached_statements=512
        )
        connection.execute(f"PRAGMA busy_timeout = {BUSY_TIMEOUT_MS}")
        found = connection.execute("PRAGMA application_id").fetchone()[0]
        tables = connection.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]
        if tables and found != APPLICATION_ID:
            connection.close()
            raise UnfitDatastore(
                f"{path} is not a dapd database; set [datastore] path to another file"
            )
        if not tables:
            # Only before WAL (after it, it would have no effect), and only once (it writes).
            connection.execute("PRAGMA auto_vacuum = INCREMENTAL")
        connection.execute("PRAGMA journal_mode = WAL").fetchall()
        connection.execute("PRAGMA synchronous = FULL")
        connection.execute("PRAGMA secure_delete = FAST")
        connection.execute("PRAGMA foreign_keys = ON")
        auto_vacuum = connection.execute("PRAGMA auto_vacuum").fetchone()[0]
    except sqlite3.Error as error:
        raise explain(error, path) from error
    if auto_vacuum != _INCREMENTAL:  # created by hand, or copied by a tool that ignores it
        connection.close()
        raise DatastoreError(
            f"{path} can't give space back: its auto_vacuum is {auto_vacuum}; stop dapd and "
            f'run: sqlite3 {path} "PRAGMA auto_vacuum = {_INCREMENTAL}; VACUUM"'
        )
    return connection


def _is_io_error(error: sqlite3.Error) -> bool:
    code = getattr(error, "sqlite_errorcode", None)
    return code is not None and code & 0xFF == sqlite3.SQLITE_IOERR


def explain(error: sqlite3.Error, path: Path) -> DatastoreError:
    """Return the error as a ``DatastoreError`` that says what to do."""
    code = getattr(error, "sqlite_errorcode", 0)
    if code == sqlite3.SQLITE_IOERR_SHMSIZE:  # no room for its ``-shm``
        code = sqlite3.SQLITE_FULL
    match code & 0xFF:
        case sqlite3.SQLITE_FULL:
            remedy = "the disk is full; free some space; no accepted report is lost"
        case sqlite3.SQLITE_BUSY:
            remedy = "another program has held the file's write lock for too long"
        case sqlite3.SQLITE_CANTOPEN:
            remedy = "can't open the file; does its directory exist, and may this user write to it?"
        case sqlite3.SQLITE_READONLY:
            remedy = "the file, or its directory, is read-only for this user"
        case sqlite3.SQLITE_NOTADB | sqlite3.SQLITE_CORRUPT:
            remedy = "the file is damaged or not an SQLite database; restore a backup"
            return UnfitDatastore(f"{path}: {error}; {remedy}")
        case _:
            remedy = "this is a bug in dapd, or the disk is failing"
    return DatastoreError(f"{path}: {error}; {remedy}")
