"""Make copies of a database, readable only by this user, and delete them when their data expires.

``VACUUM INTO`` copies one snapshot beside a running daemon. The copy gets its final name only after
it is checked and on the disk. It contains no sealing key. Its time is that of the snapshot's safe
clock (rule D6), so a machine clock that shows 2036 for a minute deletes no backups. ADR 0019.
``dapd.datastore.replace`` restores a copy, ``dapd.datastore.verify`` checks one.
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
    """A finished copy; ``state_of`` is the time of its snapshot, in milliseconds."""

    path: Path
    sequence: int
    size: int
    state_of: int
    shortest_age: int | None
    """The smallest ``report_expiry_age`` of its tasks, in seconds; ``None`` if nothing expires."""


@dataclass(frozen=True, slots=True)
class LastBackup:
    """The record of the last successful ``dapd backup``, kept beside the database; times in ms."""

    made_at: int
    state_of: int
    path: str
    sequence: int
    size: int


def backup_name(copy: Copy) -> str:
    """Return a backup's file name, ``dapd-<UTC time>-<commit sequence>.sqlite``."""
    time = datetime.fromtimestamp(copy.state_of // 1000, UTC)
    return f"dapd-{time.strftime(_TIME)}-{copy.sequence}.sqlite"


def take(
    database: Path, directory: Path, name: Callable[[Copy], str], *, now: int, spare: int
) -> Copy:
    """Copy ``database`` into ``directory``, under the name that ``name`` returns.

    ``now`` (ms) is the copy's time if no daemon has ever run on the database; ``spare`` bytes stay
    free. Raises ``DatastoreError``, and then leaves no files behind.
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
                f"no backup of {database} was made in {directory}: {error}; is there enough space, "
                "and may this user write there? `dapd datastore check` looks for damage"
            ) from error
        finally:
            _remove_partials(directory, partial)
    return copy


def shortest_age(database: Path) -> int | None:
    """Return the smallest ``report_expiry_age`` of a task, in seconds; ``None`` if nothing expires.

    Raises ``DatastoreError``, also if this program does not know the database's schema.
    """
    with closing(_open(database)) as connection:
        check_version(connection, database, may_be_older=True)
        return shortest_age_of(Tx(connection, ReplayIndex()))


def shortest_age_of(tx: Tx) -> int | None:
    """Do what ``shortest_age`` does, in a transaction."""
    row = tx.one(_Q_SHORTEST_AGE)
    return None if row is None or row[0] is None else int(row[0])


def remove_old_backups(newest: Copy, keep: int | None) -> list[Path]:
    """Remove the backups beside ``newest`` that are older than ``keep`` seconds, or than their own
    reports may be kept. Return the removed ones.
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


def before_upgrade(database: Path, version: int, *, now: int, spare: int = SPARE_BYTES) -> Copy:
    """Copy the database beside itself before its upgrade to schema ``version``.

    This deletes copies of earlier upgrades. Raises ``DatastoreError``; then don't upgrade either.
    """
    name = f"{database.name}.before-schema-{version}"
    try:
        copy = take(database, database.parent, lambda _: name, now=now, spare=spare)
    except DatastoreError as error:
        raise DatastoreError(f"not upgraded to schema {version}: {error}") from error
    for path in _beside(database, "before-schema"):
        if path != copy.path:
            path.unlink(missing_ok=True)
    return copy


def remove_expired_copies(database: Path, safe_now: int, age: int | None) -> list[Path]:
    """Remove the copies that upgrades and restores have kept beside the database, once their
    reports have expired. Return the removed ones.

    ``safe_now`` is in ms; ``age``, in seconds, is for damaged copies.
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
    """Return the path of the record: beside the database, to be read without opening that (E5)."""
    return database.with_name(f"{database.name}.last-backup")


def note_backup(database: Path, copy: Copy, *, now: int) -> LastBackup:
    """Record this backup beside the database, for monitoring.

    Raises ``DatastoreError`` if the record can't be written.
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
            f"{path}: {error.strerror}; the backup {copy.path} is complete, but monitoring can't "
            "see it"
        ) from error
    return last


def last_backup(database: Path) -> LastBackup | None:
    """Return the record of the last ``dapd backup``; ``None`` if there is none."""
    try:
        return msgspec.json.decode(last_backup_path(database).read_bytes(), type=LastBackup)
    except (OSError, msgspec.DecodeError):
        return None


def connect_read_only(path: Path) -> sqlite3.Connection:
    """Open a file that no process writes, without changing it. Raises ``DatastoreError``."""
    if not path.is_file():
        raise DatastoreError(f"{path}: no such file")
    uri = f"{path.absolute().as_uri()}?mode=ro&immutable=1"
    try:
        connection = sqlite3.connect(uri, uri=True, isolation_level=None)
        found = connection.execute("PRAGMA application_id").fetchone()[0]
    except sqlite3.Error as error:
        raise DatastoreError(f"{path} is damaged or not a database: {error}") from error
    if found != APPLICATION_ID:
        connection.close()
        raise DatastoreError(f"{path} is not a dapd database")
    return connection


def _open(database: Path) -> sqlite3.Connection:
    if not database.exists():
        raise DatastoreError(f"{database}: no such database; is [datastore] path right?")
    connection = connect(database)
    # Without this, Python handles no signal until the whole file is copied.
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
            f"{directory} has {has >> 20} MB free, a copy of the database needs {needed >> 20} MB, "
            "including a reserve; free some space there"
        )


def _check(path: Path) -> None:
    with closing(connect_read_only(path)) as connection:
        found = connection.execute("PRAGMA quick_check").fetchone()[0]
    if found != "ok":
        raise DatastoreError(
            f"the copy is damaged ({found}), so the database may be; see `dapd datastore check`"
        )


def _look(path: Path, now: int) -> Copy:
    """Describe a copy. Raises ``DatastoreError`` or, for a damaged copy, ``sqlite3.Error``."""
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
    """Describe a copy; for a damaged one, assume its file's time and this ``age``."""
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
    """Lock the directory against other backups, and remove partial files of killed ones."""
    try:
        descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as error:
        raise DatastoreError(f"{directory}: {error.strerror}; create this directory") from error
    try:
        if _locked(descriptor, directory):
            for path in directory.iterdir():
                if _PARTIAL.fullmatch(path.name):
                    path.unlink(missing_ok=True)
        yield
    finally:
        os.close(descriptor)


def _locked(descriptor: int, directory: Path) -> bool:
    """Lock the directory; return ``False`` if the file system can't lock directories."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise DatastoreError(
            f"{directory}: another backup is running there; wait until it has finished"
        ) from None
    except OSError:
        return False
    return True


def _remove_partials(directory: Path, partial: Path) -> None:
    for path in (partial, directory / f"{partial.name}-journal"):
        with suppress(OSError):
            path.unlink(missing_ok=True)
