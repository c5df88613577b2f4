"""Open a datastore, for the daemon or a command: take the lock, migrate, build the replay index."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass
from pathlib import Path

from dapd.datastore import lock, replay
from dapd.datastore.backup import before_upgrade
from dapd.datastore.files import create_private
from dapd.datastore.migrate import Migration, check_version, migrate, pending, schema_of
from dapd.datastore.mounts import refuse_network
from dapd.datastore.sqlite import (
    Datastore,
    commit_sequence,
    connect,
    settled_sequence,
    wal_identity,
)
from dapd.errors import DatastoreError, UnfitDatastore


@dataclass(frozen=True, slots=True)
class Opened:
    """An open datastore and its lock, which is ``None`` if a daemon holds the file.

    ``copied_to`` is a copy of the database from before the migrations in ``migrated``. ``behind``
    is true if the file lacks commits, because it was replaced by an older copy. It stays true, also
    after restarts, until ``accept_sequence`` is called.
    """

    datastore: Datastore
    lock: lock.FileLock | None
    migrated: list[str]
    behind: bool = False
    copied_to: Path | None = None

    def accept_sequence(self) -> None:
        """End ``behind``, once everything that the file may have forgotten is quarantined."""
        if self.lock is not None:
            self.lock.accept(self.datastore.read_sync(commit_sequence))

    def close(self) -> None:
        self.datastore.close()
        if self.lock is not None:
            self.lock.close()


def open_for_daemon(
    path: Path,
    *,
    holder: str,
    now: int,
    on_lost: Callable[[str], None],
    carried: Sequence[Migration] | None = None,
) -> Opened:
    """Lock, create, migrate, and rebuild the replay index. ``now`` is in milliseconds.

    ``on_lost`` is called if a commit may or may not have happened; it must end the process (D3).
    ``carried`` are the migrations of this program, ``migrations()`` unless given.
    Raises ``DatastoreError``, which names the holder if another process has the file.
    """
    refuse_network(path)
    held = lock.try_lock(path, holder)
    if held is None:
        raise DatastoreError(
            f"{path} is held by {lock.holder_of(path)}; stop it, or set another [datastore] path"
        )
    try:
        opened = _open_held(path, held, now, on_lost, carried)
        opened.datastore.read_sync(replay.rebuild)
    except BaseException:
        held.close()
        raise
    return opened


def open_for_command(
    path: Path, *, holder: str, now: int, carried: Sequence[Migration] | None = None
) -> Opened:
    """Open for one short transaction of a command, also while a daemon holds the file (rule E5).

    If no other process has the lock, this may create and migrate the database; else it does not.
    """
    refuse_network(path)
    held = lock.try_lock(path, holder)
    try:
        if held is not None:
            return _open_held(path, held, now, _lost, carried)
        connection = connect(path)
        try:
            check_version(connection, path, may_be_older=False, carried=carried)
        finally:
            connection.close()
        return Opened(Datastore(path, _lost), None, [])
    except BaseException:
        if held is not None:
            held.close()
        raise


def _open_held(
    path: Path,
    held: lock.FileLock,
    now: int,
    on_lost: Callable[[str], None],
    carried: Sequence[Migration] | None,
) -> Opened:
    """Migrate and open the database, and compare its commit sequence with the recorded one."""
    with suppress(OSError):  # the file exists, or SQLite reports the error below
        create_private(path)  # SQLite gives -wal and -shm the mode of this file
    _refuse_foreign_wal(path, held)
    copied_to = None
    with closing(connect(path)) as connection:
        known, _ = schema_of(connection)
        if known and (steps := pending(connection, carried)):
            copied_to = before_upgrade(path, steps[-1].version, now=now).path
        migrated = migrate(connection, path, now, carried)
    datastore = Datastore(path, on_lost, held)
    behind = held.compare(datastore.read_sync(commit_sequence), wal_identity(path))
    return Opened(datastore, held, migrated, behind, copied_to)


def _refuse_foreign_wal(path: Path, held: lock.FileLock) -> None:
    """Raise ``UnfitDatastore`` if the database was replaced by an older copy, but not its WAL.

    SQLite would put the WAL's pages into the copy, which damages it in ways that nobody may notice.
    """
    settled = settled_sequence(path)
    if wal_identity(path) == b"":
        held.settle(settled or 0)
    elif settled is not None and settled < held.settled:
        raise UnfitDatastore(
            f"{path} is older than its -wal, which belongs to the database that was there before; "
            "run `dapd restore` with the backup"
        )


def _lost(message: str) -> None:
    look = "`dapd task list` or `dapd key list`"
    raise DatastoreError(f"{message}; see with {look} whether the change was made")
