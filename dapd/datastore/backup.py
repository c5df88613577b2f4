"""Copies of a database: consistent, whole, for this user alone, and gone when their data must be.

``VACUUM INTO`` copies one snapshot beside a running daemon, into a file that takes its name only
once it is checked and on the disk. A copy holds no sealing key. Its time is the safe clock's of the
snapshot (rule D6), so that a minute in 2036 deletes no backups. ADR 0019. Left out: putting one
back (``dapd.datastore.replace``) and looking into one (``dapd.datastore.verify``).
"""

from __future__ import annotations

import fcntl
import glob
import os
import re
import secrets
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

import msgspec

from dapd.datastore import files, safe_clock
from dapd.datastore.migrate import check_version
from dapd.datastore.sqlite import APPLICATION_ID, Tx, commit_sequence, connect
from dapd.errors import DatastoreError
from dapd.reports import ReplayIndex

SPARE_BYTES = 16 << 20
_STEPS_BETWEEN_SIGNALS = 100_000
_NAME = re.compile(r"dapd-(\d{8}T\d{6}Z)-\d+\.sqlite")
_TIME = "%Y%m%dT%H%M%SZ"
_PARTIAL = re.compile(r"\.dapd-[0-9a-f]{16}\.partial(-journal)?")

_Q_SHORTEST_AGE = "SELECT min(report_expiry_age) FROM tasks WHERE state <> 'purged'"


@dataclass(frozen=True, slots=True)
class Copy:
    """A finished copy; ``state_of`` is the time of what it holds, in milliseconds."""

    path: Path
    sequence: int
    size: int
    state_of: int
    shortest_age: int | None
    """Seconds: the smallest ``report_expiry_age`` of its tasks; ``None`` if nothing expires."""


@dataclass(frozen=True, slots=True)
class LastBackup:
    """What the last successful ``dapd backup`` left beside the database; times in milliseconds."""

    made_at: int
    state_of: int
    path: str
    sequence: int
    size: int


def backup_name(copy: Copy) -> str:
    """``dapd-<UTC time>-<commit sequence>.sqlite``."""
    time = datetime.fromtimestamp(copy.state_of // 1000, UTC)
    return f"dapd-{time.strftime(_TIME)}-{copy.sequence}.sqlite"


def take(
    database: Path, directory: Path, name: Callable[[Copy], str], *, now: int, spare: int
) -> Copy:
    """Copy ``database`` into ``directory``, under the name that ``name`` gives it.

    ``now`` (ms) is its time if no daemon has run on it; ``spare`` bytes stay free. Raises
    ``DatastoreError``, and leaves nothing behind then.
    """
    with _alone_in(directory), closing(_open(database)) as source:
        partial = directory / f".dapd-{secrets.token_hex(8)}.partial"
        try:
            _require_space(source, directory, spare)
            files.create_private(partial)
            source.execute("VACUUM INTO :partial", {"partial": os.fspath(partial)})
            _check(partial)
            files.sync(partial)
            copy = _look(partial, now)
            copy = replace(copy, path=directory / name(copy))
            partial.rename(copy.path)
            files.sync(directory)
        except (OSError, sqlite3.Error) as error:
            raise DatastoreError(
                f"no backup of {database} was made in {directory}: {error}; is there room, and may "
                "this user write there? `dapd datastore check` looks for damage"
            ) from error
        finally:
            _remove_partials(directory, partial)
    return copy


def shortest_age(database: Path) -> int | None:
    """Seconds: the smallest ``report_expiry_age`` of a task; ``None`` if nothing expires.

    Raises ``DatastoreError``, also if this program does not know the file's schema.
    """
    with closing(_open(database)) as connection:
        check_version(connection, database, may_be_older=True)
        return shortest_age_of(Tx(connection, ReplayIndex()))


def shortest_age_of(tx: Tx) -> int | None:
    """``shortest_age`` in a transaction."""
    row = tx.one(_Q_SHORTEST_AGE)
    return None if row is None or row[0] is None else int(row[0])


def remove_old_backups(newest: Copy, keep: int | None) -> list[Path]:
    """Remove the backups beside ``newest`` that are older than ``keep`` seconds, or than their own
    reports may be kept; those removed.
    """
    removed = []
    for path in sorted(newest.path.parent.iterdir()):
        if _NAME.fullmatch(path.name) and path != newest.path:
            copy = _look_or_guess(path, newest.shortest_age)
            ages = [age for age in (copy.shortest_age, keep) if age is not None]
            if ages and copy.state_of < newest.state_of - min(ages) * 1000:
                path.unlink(missing_ok=True)
                removed.append(path)
    return removed


def before_upgrade(database: Path, version: int, *, now: int) -> Copy:
    """Copy the database beside itself, as it is before it gets schema ``version``.

    Copies of earlier upgrades go. Raises ``DatastoreError``; then there is no upgrade either.
    """
    name = f"{database.name}.before-schema-{version}"
    try:
        copy = take(database, database.parent, lambda _: name, now=now, spare=SPARE_BYTES)
    except DatastoreError as error:
        raise DatastoreError(f"not upgraded to schema {version}: {error}") from error
    for path in _beside(database, "before-schema"):
        if path != copy.path:
            path.unlink(missing_ok=True)
    return copy


def remove_expired_copies(database: Path, safe_now: int, age: int | None) -> list[Path]:
    """Remove what upgrades and restores have kept beside the database once its reports may not be
    kept any longer; those removed. ``safe_now`` is in ms; ``age``, in seconds, is for damaged ones.
    """
    removed = []
    for path in _beside(database, "before-schema") + _beside(database, "before-restore"):
        copy = _look_or_guess(path, age)
        if copy.shortest_age is None or copy.state_of >= safe_now - copy.shortest_age * 1000:
            continue
        files.remove(path)
        removed.append(path)
    return removed


def last_backup_path(database: Path) -> Path:
    """Beside the database, so that looking at it costs the database nothing (rule E5)."""
    return database.with_name(f"{database.name}.last-backup")


def note_backup(database: Path, copy: Copy, *, now: int) -> LastBackup:
    """Say beside the database that this backup was made, for whoever monitors it.

    Raises ``DatastoreError`` if that can't be written.
    """
    last = LastBackup(now, copy.state_of, str(copy.path.absolute()), copy.sequence, copy.size)
    path = last_backup_path(database)
    partial = path.with_name(f"{path.name}.{os.getpid()}")
    try:
        partial.write_bytes(msgspec.json.encode(last) + b"\n")
        partial.chmod(0o600)
        partial.rename(path)
    except OSError as error:
        partial.unlink(missing_ok=True)
        raise DatastoreError(
            f"{path}: {error.strerror}; the backup {copy.path} stands, but nobody can see when the "
            "last one was made"
        ) from error
    return last


def last_backup(database: Path) -> LastBackup | None:
    """The last backup that ``dapd backup`` made; ``None`` if it is not known."""
    try:
        return msgspec.json.decode(last_backup_path(database).read_bytes(), type=LastBackup)
    except (OSError, msgspec.DecodeError):
        return None


def connect_read_only(path: Path) -> sqlite3.Connection:
    """A file that nobody writes, opened without touching it. Raises ``DatastoreError``."""
    if not path.is_file():
        raise DatastoreError(f"{path}: no such file")
    uri = f"{path.absolute().as_uri()}?mode=ro&immutable=1"
    try:
        connection = sqlite3.connect(uri, uri=True, isolation_level=None)
        found = connection.execute("PRAGMA application_id").fetchone()[0]
    except sqlite3.Error as error:
        raise DatastoreError(f"{path} is damaged, or no database: {error}") from error
    if found != APPLICATION_ID:
        connection.close()
        raise DatastoreError(f"{path} is not a dapd database")
    return connection


def _open(database: Path) -> sqlite3.Connection:
    if not database.exists():
        raise DatastoreError(f"{database}: no such database; is [datastore] path right?")
    connection = connect(database)
    # Without it no signal is looked at before the whole file is copied.
    connection.set_progress_handler(lambda: 0, _STEPS_BETWEEN_SIGNALS)
    return connection


def _require_space(source: sqlite3.Connection, directory: Path, spare: int) -> None:
    pages, free, size = (
        int(source.execute(f"PRAGMA {name}").fetchone()[0])
        for name in ("page_count", "freelist_count", "page_size")
    )
    found = os.statvfs(directory)
    needed, has = (pages - free) * size + spare, found.f_bavail * found.f_frsize
    if has < needed:
        raise DatastoreError(
            f"{directory} has {has >> 20} MB free, a copy of the database needs {needed >> 20} MB "
            "with what must stay free; free some space there"
        )


def _check(path: Path) -> None:
    with closing(connect_read_only(path)) as connection:
        found = connection.execute("PRAGMA quick_check").fetchone()[0]
    if found != "ok":
        raise DatastoreError(
            f"the copy is damaged ({found}), so the database may be; see `dapd datastore check`"
        )


def _look(path: Path, now: int) -> Copy:
    """What a copy holds. Raises ``DatastoreError`` or, for a damaged one, ``sqlite3.Error``."""
    with closing(connect_read_only(path)) as connection:
        tx = Tx(connection, ReplayIndex())
        state_of = safe_clock.load(tx)
        return Copy(
            path,
            commit_sequence(tx),
            path.stat().st_size,
            now if state_of is None else state_of,
            shortest_age_of(tx),
        )


def _look_or_guess(path: Path, age: int | None) -> Copy:
    """What a copy holds; a damaged one is as old as its file, and its tasks have this ``age``."""
    written = path.stat()
    modified = written.st_mtime_ns // 1_000_000
    try:
        return _look(path, modified)
    except (DatastoreError, sqlite3.Error):
        return Copy(path, 0, written.st_size, modified, age)


def _beside(database: Path, why: str) -> list[Path]:
    found = database.parent.glob(f"{glob.escape(database.name)}.{why}-*")
    return sorted(path for path in found if not path.name.endswith(files.BESIDE))


@contextmanager
def _alone_in(directory: Path) -> Iterator[None]:
    """No other backup runs in this directory, so that what is partial there is left over."""
    try:
        descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as error:
        raise DatastoreError(f"{directory}: {error.strerror}; make this directory") from error
    try:
        if _locked(descriptor, directory):
            for path in directory.iterdir():
                if _PARTIAL.fullmatch(path.name):
                    path.unlink(missing_ok=True)
        yield
    finally:
        os.close(descriptor)


def _locked(descriptor: int, directory: Path) -> bool:
    """Whether the directory is locked; some file systems' directories take no locks."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise DatastoreError(
            f"{directory}: another backup is running there; wait for its end"
        ) from None
    except OSError:
        return False
    return True


def _remove_partials(directory: Path, partial: Path) -> None:
    for path in (partial, directory / f"{partial.name}-journal"):
        with suppress(OSError):
            path.unlink(missing_ok=True)
