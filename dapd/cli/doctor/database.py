"""Check the database without changing it, its backups, and the room on its disk."""

from __future__ import annotations

import errno
import os
import time
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from dapd.admin.operation import rfc3339
from dapd.advice import upkeep
from dapd.cli.doctor.findings import Steps, blamed, check, failure, is_there, ok, skipped, warning
from dapd.commits.sealing_keys import require_sealing_keys
from dapd.commits.tasks import task_standing
from dapd.config import Config
from dapd.crypto import Sealer, make_sealer, sealing_key_id
from dapd.datastore import Tx, batches, counters, keys, safe_clock, tasks
from dapd.datastore.backup import last_backup, last_backup_path
from dapd.datastore.keys import SealedKeypair
from dapd.datastore.mounts import refuse_network
from dapd.datastore.read_only import snapshot
from dapd.datastore.safe_clock import StoredClock
from dapd.datastore.tasks import SealedTask, UnreadableTask
from dapd.errors import UsageError
from dapd.protocol.task import Instant, TaskState
from dapd.wording import count, moment

_MiB = 20


@dataclass(frozen=True, slots=True)
class Known:
    """One task that is not deleted. ``collect_before`` is in ms; ``None`` means never, or that the
    task is a Helper's.
    """

    sealed: SealedTask
    counted: dict[str, int]
    collect_before: int | None
    is_quarantined: bool


@dataclass(frozen=True, slots=True)
class Contents:
    """Facts for later checks. ``sealer`` is ``None`` if a sealing key is missing."""

    tasks: list[Known]
    keys: list[SealedKeypair]
    clock: StoredClock | None
    sealer: Sealer | None


@check("file_system")
def file_system(config: Config) -> Steps[None]:
    """Check that the file system is local, as SQLite needs."""
    refuse_network(config.datastore.path)
    yield ok(config.datastore.path.parent, "local")


@check("disk")
def disk(config: Config) -> Steps[None]:
    """Check that there is room for reports, and for a copy of the database."""
    path = config.datastore.path
    found = os.statvfs(path.parent)
    free = found.f_bavail * found.f_frsize
    size = path.stat().st_size if is_there(path) else 0
    room = f"{free >> _MiB} MiB free"
    advice = upkeep.disk(free, config.disk.min_free_bytes)
    if advice is not None:
        yield failure(path.parent, advice.what, advice.remedy)
    elif free < size:
        yield warning(
            path.parent,
            f"{room}, less than the size of the database, {size >> _MiB} MiB",
            "make room: an upgrade needs a copy of the database, and so does a backup on this disk",
        )
    else:
        yield ok(path.parent, f"{room}; the database has {size >> _MiB} MiB")


@check("database")
def database(config: Config, sealing_keys: list[bytes] | None) -> Steps[Contents | None]:
    """Check the schema, the sealing keys that the database needs, and its HPKE keys."""
    path = config.datastore.path
    if not is_there(path):
        yield skipped(path, "not there yet: the daemon makes it at its first start")
        return None
    _require_ours(path)
    with snapshot(path) as (tx, is_current):
        if not is_current:
            yield warning(
                path,
                "has the schema of an older dapd",
                "restart the daemon with this version, which keeps a copy and migrates the file",
            )
            return None
        if sealing_keys is not None:
            try:
                require_sealing_keys(tx, [sealing_key_id(key) for key in sealing_keys])
            except UsageError as error:
                yield blamed(error)
                sealing_keys = None
        contents = _read(tx, None if sealing_keys is None else make_sealer(sealing_keys))
    yield ok(path, f"has this dapd's schema and {count(len(contents.tasks), 'task')}")
    yield from _hpke_keys(contents)
    return contents


@check("backup")
def backup(config: Config, contents: Contents | None) -> Steps[None]:
    """Check the age of the last backup, and whether a restore left batches closed."""
    path = config.datastore.path
    if not is_there(path):
        yield skipped("", "there is no database to back up yet")
        return
    if is_there(note := last_backup_path(path)):
        note.open("rb").close()  # raises if this user can't read it
    last = last_backup(path)
    state_of = None if last is None else rfc3339(last.state_of)
    advice = upkeep.backup(state_of, datetime.now(UTC))
    if advice is not None:
        level = warning if state_of is None else failure
        yield level("", advice.problem, advice.remedy)
    elif state_of is not None:
        yield ok("", f"the last backup is of {moment(state_of)}")
    closed = sum(task.is_quarantined for task in contents.tasks) if contents else 0
    if (restored := upkeep.restored(closed)) is not None:
        yield warning("", restored.problem, restored.remedy)


def _require_ours(path: Path) -> None:
    """Raise ``PermissionError`` if this user can't write beside the database, as SQLite must to
    read one that is open. The owner gets SQLite's own error, as the daemon would.
    """
    state = path.parent
    if state.stat().st_uid != os.geteuid() and not os.access(state, os.W_OK):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), os.fspath(path))


def _hpke_keys(contents: Contents) -> Steps[None]:
    advice = upkeep.hpke_keys([key.state.value for key in contents.keys])
    if contents.clock is not None and advice is not None:  # the first start makes the first key
        yield failure("", advice.problem, advice.remedy)
    if contents.sealer is None:
        return
    for key in contents.keys:
        try:
            key.unseal(contents.sealer)
        except ValueError as error:
            yield failure(
                f"HPKE key {key.config_id}",
                f"can't be opened: {error}",
                "`dapd datastore keys` shows which sealing key is missing; if it is lost, "
                "`dapd key add --active`",
            )


def _read(tx: Tx, sealer: Sealer | None) -> Contents:
    at = safe_clock.instant(tx, time.time_ns() // 1_000_000)
    known = [
        Known(
            each,
            counters.of_task(tx, each.task_pk),
            _collect_before(tx, each, at),
            bool(batches.quarantined_ranges(tx, each.task_pk)),
        )
        for each in tasks.all_tasks(tx)
        if each.state not in (TaskState.DELETED, TaskState.PURGED)
    ]
    return Contents(known, keys.kept_keypairs(tx), safe_clock.load_all(tx), sealer)


def _collect_before(tx: Tx, sealed: SealedTask, at: Instant) -> int | None:
    try:
        task = sealed.public()
    except UnreadableTask:
        return None
    return task_standing(tx, task, at).collect_before if task.is_leader else None
