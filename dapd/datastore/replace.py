"""Putting a backup in a database's place: no moment has neither, none has one that is not prepared.

The copy is made, checked and prepared under another name and then takes the database's name at
once; the database that was there is kept. Left out: what preparing means (``dapd.commits``).
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
    """What ``prepare`` returned, and where the database is that was there, if one was."""

    prepared: T
    kept: Path | None


def put_in_place(
    database: Path,
    source: Path,
    *,
    holder: str,
    now: int,
    check: Callable[[Path], object],
    prepare: Callable[[Datastore], T],
) -> Restored[T]:
    """Replace ``database`` by a copy of ``source`` that ``check`` finds good (or raises) and that
    ``prepare`` has changed.

    ``now`` is in milliseconds. Raises ``DatastoreError``, also if another process has the
    database; whatever is raised, what was there is still there.
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
    """A consistent copy that only this user can read; SQLite makes it, which knows of a WAL."""
    files.create_private(copy)
    try:
        with closing(sqlite3.connect(files.read_only_uri(source), uri=True)) as opened:
            opened.execute("VACUUM INTO :copy", {"copy": os.fspath(copy)})
    except sqlite3.Error as error:
        raise DatastoreError(
            f"{source} can't be copied: {error}; is it a whole backup, and is there room beside "
            f"{copy}?"
        ) from error
    files.sync(copy)


def _check(source: Path, copy: Path, check: Callable[[Path], object]) -> None:
    try:
        check(copy)
    except DatastoreError as error:
        raise DatastoreError(f"{source}, copied: {error}") from error


def _prepared(copy: Path, now: int, prepare: Callable[[Datastore], T]) -> tuple[T, int]:
    """What ``prepare`` returned, and the commit sequence after it."""
    with closing(connect(copy)) as connection:
        migrate(connection, copy, now)
    with closing(Datastore(copy, _lost)) as datastore:
        return prepare(datastore), datastore.read_sync(commit_sequence)


def _keep(database: Path, now: int) -> Path | None:
    """Give the database that is there a second name."""
    if not database.exists():
        return None
    with suppress(DatastoreError):  # a damaged one is kept with its WAL, as it is
        connect(database).close()
    kept = database.with_name(f"{database.name}.before-restore-{now // 1000}")
    try:
        kept.hardlink_to(database)
    except OSError:  # no links on this file system
        database.rename(kept)
    for beside in files.BESIDE:
        with suppress(FileNotFoundError):
            database.with_name(database.name + beside).rename(kept.with_name(kept.name + beside))
    return kept


def _lost(message: str) -> None:
    raise DatastoreError(f"{message}; restore again")
