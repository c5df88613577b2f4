"""Opening a datastore: the lock, the schema, the replay index; for the daemon and for commands."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from dapd.datastore import lock, replay
from dapd.datastore.engines import Datastore, connect
from dapd.datastore.migrate import check_version, migrate
from dapd.errors import DatastoreError


@dataclass(frozen=True, slots=True)
class Opened:
    """A datastore with its lock; ``lock`` is ``None`` where a daemon holds the file."""

    datastore: Datastore
    lock: lock.FileLock | None
    migrated: list[str]

    def close(self) -> None:
        self.datastore.close()
        if self.lock is not None:
            self.lock.close()


def open_for_daemon(path: Path, *, holder: str, now: int, on_lost: Callable[[str], None]) -> Opened:
    """Lock, create, migrate, and rebuild the replay index. ``now`` is in milliseconds.

    ``on_lost`` is called when a commit's fate can't be known; it must end the process (rule D3).
    Raises ``DatastoreError``, which names the holder if another process has the file.
    """
    held = lock.try_lock(path, holder)
    if held is None:
        raise DatastoreError(
            f"{path} is held by {lock.holder_of(path)}; stop it, or set another [datastore] path"
        )
    try:
        migrated = _migrate(path, now)
        datastore = Datastore(path, on_lost)
        datastore.read_sync(replay.rebuild)
    except BaseException:
        held.close()
        raise
    return Opened(datastore, held, migrated)


def open_for_command(path: Path, *, holder: str, now: int) -> Opened:
    """For one short transaction of a command, also while a daemon holds the file (rule E5).

    With the lock at hand it may create and migrate; without, it never migrates.
    """
    held = lock.try_lock(path, holder)
    try:
        if held is not None:
            migrated = _migrate(path, now)
        else:
            migrated = []
            connection = connect(path)
            try:
                check_version(connection, path, may_be_older=False)
            finally:
                connection.close()
        return Opened(Datastore(path, _lost), held, migrated)
    except BaseException:
        if held is not None:
            held.close()
        raise


def _migrate(path: Path, now: int) -> list[str]:
    connection = connect(path)
    try:
        return migrate(connection, path, now)
    finally:
        connection.close()


def _lost(message: str) -> None:
    raise DatastoreError(f"{message}; look with `task list` whether the change was made")
