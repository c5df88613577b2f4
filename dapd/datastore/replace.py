"""Atomically replace a database by a prepared copy of a backup.

The copy is made, checked and prepared under another name, and then renamed; the old database is
kept beside it. ``dapd.commits`` has the transactions that prepare a copy.
"""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Callable
from contextlib import closing, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, TypeVar

from dapd.datastore import files, lock
from dapd.datastore.migrate import migrate
from dapd.datastore.sqlite import Datastore, commit_sequence, connect
from dapd.errors import DatastoreError

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Restored(Generic[T]):
    """The result of ``prepare``, and the path of the old database, if there was one."""

    prepared: T
    kept: Path | None


def replace_database(
    database: Path,
    source: Path,
    *,
    holder: str,
    now: int,
    check: Callable[[Path], object],
    prepare: Callable[[Datastore], T],
) -> Restored[T]:
    """Replace ``database`` by a copy of ``source``, after ``check`` and ``prepare``.

    ``check`` raises for a bad copy; ``prepare`` changes it. ``now`` is in milliseconds. Raises
    ``DatastoreError``, also if another process has the database. If anything is raised, the old
    database is still in place.
    """
    held = lock.try_lock(database, holder)
    if held is None:
        raise DatastoreError(
            f"{database} is held by {lock.holder_of(database)}; stop it, then restore again"
        )
    copy = database.with_name(f"{database.name}.restoring")
    try:
        files.remove(copy)
        try:
            _copy(source, copy)
            _check(source, copy, check)
            prepared, sequence = _prepared(copy, now, prepare)
            kept = _keep(database, now)
            copy.replace(database)
        except OSError as error:
            raise DatastoreError(f"{error.filename}: {error.strerror}") from error
        finally:
            files.remove(copy)
        files.sync(database.parent)
        held.accept(sequence)
    finally:
        held.close()
    return Restored(prepared, kept)


def _copy(source: Path, copy: Path) -> None:
    """Make a consistent copy, readable only by this user, through SQLite, which includes a WAL."""
    files.create_private(copy)
    try:
        with closing(sqlite3.connect(files.read_only_uri(source), uri=True)) as opened:
            opened.execute("VACUUM INTO :copy", {"copy": os.fspath(copy)})
    except sqlite3.Error as error:
        raise DatastoreError(
            f"{source} can't be copied: {error}; is it a complete backup, and is there enough "
            f"space for {copy}?"
        ) from error
    files.sync(copy)


def _check(source: Path, copy: Path, check: Callable[[Path], object]) -> None:
    try:
        check(copy)
    except DatastoreError as error:
        raise DatastoreError(f"a copy of {source}: {error}") from error


def _prepared(copy: Path, now: int, prepare: Callable[[Datastore], T]) -> tuple[T, int]:
    """Migrate and prepare the copy; return the result of ``prepare`` and the commit sequence."""
    with closing(connect(copy)) as connection:
        migrate(connection, copy, now)
    with closing(Datastore(copy, _lost)) as datastore:
        return prepare(datastore), datastore.read_sync(commit_sequence)


def _keep(database: Path, now: int) -> Path | None:
    """Keep the old database, if there is one, under a second name."""
    if not database.exists():
        return None
    with suppress(DatastoreError):  # a damaged database is kept together with its WAL
        connect(database).close()
    kept = database.with_name(f"{database.name}.before-restore-{now // 1000}")
    try:
        kept.hardlink_to(database)
    except OSError:  # this file system has no hard links
        database.rename(kept)
    for beside in files.BESIDE:
        with suppress(FileNotFoundError):
            database.with_name(database.name + beside).rename(kept.with_name(kept.name + beside))
    return kept


def _lost(message: str) -> None:
    raise DatastoreError(f"{message}; restore again")
