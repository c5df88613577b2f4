"""The database, looked at without changing it, and whether its disk has room for it."""

from __future__ import annotations

import errno
import os
import time
from dataclasses import dataclass
from pathlib import Path

from dapd.admin.todo import BACKUP_AGE
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
from dapd.protocol.keys import KeyState
from dapd.protocol.task import Instant, TaskState
from dapd.protocol.waiting import spell

_MiB = 20


@dataclass(frozen=True, slots=True)
class Known:
    """One task that is not deleted; ``collect_before`` is in ms, ``None`` for never, or where this
    is no Leader.
    """

    sealed: SealedTask
    counted: dict[str, int]
    collect_before: int | None
    is_quarantined: bool


@dataclass(frozen=True, slots=True)
class Contents:
    """What later checks go by. ``sealer`` is ``None`` unless every key is there that it needs."""

    tasks: list[Known]
    keys: list[SealedKeypair]
    clock: StoredClock | None
    sealer: Sealer | None


@check("file_system")
def file_system(config: Config) -> Steps[None]:
    """Whether SQLite can trust it."""
    refuse_network(config.datastore.path)
    yield ok(config.datastore.path.parent, "local")


@check("disk")
def disk(config: Config) -> Steps[None]:
    """Whether the daemon takes reports, and a copy of the database has room."""
    path = config.datastore.path
    found = os.statvfs(path.parent)
    free = found.f_bavail * found.f_frsize
    size = path.stat().st_size if is_there(path) else 0
    room = f"{free >> _MiB} MiB free"
    if free < (mark := config.disk.min_free_bytes):
        yield failure(
            path.parent,
            f"{room}, and below {mark >> _MiB} MiB uploads and new jobs are refused",
            "make room, or lower [disk] min_free_bytes",
        )
    elif free < size:
        yield warning(
            path.parent,
            f"{room}, less than the database has, {size >> _MiB} MiB",
            "make room: an upgrade, and a backup that is kept there, need as much",
        )
    else:
        yield ok(path.parent, f"{room}, the database has {size >> _MiB} MiB")


@check("database")
def database(config: Config, sealing_keys: list[bytes] | None) -> Steps[Contents | None]:
    """Its schema, and whether the configured keys are all that it needs."""
    path = config.datastore.path
    if not is_there(path):
        yield skipped(path, "there is none yet: the daemon makes it when it first starts")
        return None
    _require_ours(path)
    with snapshot(path) as (tx, is_current):
        if not is_current:
            yield warning(
                path,
                "it has the schema of an older dapd",
                "restart the daemon with this version, which keeps a copy and migrates it",
            )
            return None
        if sealing_keys is not None:
            try:
                require_sealing_keys(tx, [sealing_key_id(key) for key in sealing_keys])
            except UsageError as error:
                yield blamed(error)
                sealing_keys = None
        contents = _read(tx, None if sealing_keys is None else make_sealer(sealing_keys))
    yield ok(path, f"this dapd's schema; tasks: {len(contents.tasks)}")
    yield from _hpke_keys(contents)
    return contents


@check("backup")
def backup(config: Config, contents: Contents | None) -> Steps[None]:
    """How old the last one is, and whether a restored one is left half served."""
    path = config.datastore.path
    if not is_there(path):
        yield skipped("", "there is nothing to back up yet")
        return
    if is_there(note := last_backup_path(path)):
        note.open("rb").close()  # one that this user can't read is not none
    last = last_backup(path)
    age = None if last is None else int(time.time() * 1000) - last.state_of
    if age is None:
        yield warning("", "there is none yet", "every night: dapd backup DIR, on another disk")
    elif age > BACKUP_AGE.total_seconds() * 1000:
        yield failure(
            "",
            f"the last one is {spell(age)} old",
            "dapd backup DIR; then look why the nightly one is not made any more",
        )
    else:
        yield ok("", f"the last one is {spell(max(age, 0))} old")
    if contents and (closed := sum(task.is_quarantined for task in contents.tasks)):
        yield warning(
            "",
            f"a restore has closed batches, in {closed} of {len(contents.tasks)} tasks",
            "compare `dapd restore status` with the other Aggregator, then `dapd restore accept`",
        )


def _require_ours(path: Path) -> None:
    """Raise ``PermissionError`` for whom SQLite would tell nothing better: it needs to write beside
    a database that is open, and its owner gets the error that the daemon would get.
    """
    state = path.parent
    if state.stat().st_uid != os.geteuid() and not os.access(state, os.W_OK):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), os.fspath(path))


def _hpke_keys(contents: Contents) -> Steps[None]:
    active = [key for key in contents.keys if key.state is KeyState.ACTIVE]
    if not active and contents.clock is not None:  # else no daemon has made the first one yet
        yield failure("", "no HPKE key is active, and nobody can upload", "dapd key add --active")
    if contents.sealer is None:
        return
    for key in contents.keys:
        try:
            key.unseal(contents.sealer)
        except ValueError as error:
            yield failure(
                f"HPKE key {key.config_id}",
                f"it does not open: {error}",
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
