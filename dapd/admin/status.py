"""GET /status: the state of the daemon at one moment, and what an operator must do.

Comes from one reading transaction, the disk, and the process's memory. Left out: numbers over time
(``dapd.admin.gauges``), and what must be done (``dapd.admin.todo``).
"""

from __future__ import annotations

import os
import time
from collections import defaultdict
from collections.abc import Collection
from dataclasses import dataclass

import msgspec
import trio

from dapd import __version__
from dapd.admin import clock
from dapd.admin.clock import ClockView
from dapd.admin.job_view import JobView, Look, look_at, view
from dapd.admin.operation import Moment, Nothing, Operation, rfc3339, rfc3339_or_never
from dapd.admin.peers import PeerView, all_peers
from dapd.admin.todo import what_to_do
from dapd.commits.hpke_keys import key_times
from dapd.commits.tasks import task_standing
from dapd.config import Config
from dapd.datastore import Tx, batches, jobs, keys
from dapd.datastore.backlog import Unfinished, WholeBacklog, whole_backlog
from dapd.datastore.backup import last_backup
from dapd.datastore.jobs import JobRow
from dapd.datastore.tasks import SealedTask, UnreadableTask
from dapd.protocol.keys import KeyState, KeyTimes, StoredKey, next_of
from dapd.protocol.states import JobState, Kind
from dapd.protocol.task import Instant, TaskState
from dapd.runtime.context import Context
from dapd.telemetry import logs

_NAMED = 5
"""Collections given up that are named; `dapd jobs list --state failed` shows them all."""
_BEGAN = time.monotonic()


class TaskLine(msgspec.Struct, frozen=True):
    """One task. ``info`` is its ``task_info`` as text; ``state`` is ``unreadable`` if this daemon
    can't work on it. ``jobs`` counts unfinished jobs, ``waiting_reports`` those in no job yet.
    ``collect_before`` is when the first uncollected report expires, ``null`` for never.
    """

    task: str
    role: str
    state: str
    info: str
    jobs: int
    waiting_reports: int
    collect_before: Moment | None


class JobsLine(msgspec.Struct, frozen=True):
    """Unfinished jobs of one kind and state, and the oldest of them, with why it waits."""

    kind: str
    role: str
    state: str
    jobs: int
    reports: int
    oldest: JobView | None


class Uploads(msgspec.Struct, frozen=True):
    """Upload requests that wait to be stored; from ``limit`` on the daemon refuses more."""

    waiting: int
    limit: int


class KeyLine(msgspec.Struct, frozen=True):
    """An HPKE key that opens reports; ``next_at`` is ``null`` if its state never changes."""

    config_id: int
    state: str
    since: Moment
    next_state: str
    next_at: Moment | None


class DiskView(msgspec.Struct, frozen=True):
    """The database's file system, in bytes. Below ``refused_below`` the daemon refuses uploads."""

    free: int
    refused_below: int
    database: int


class ErrorView(msgspec.Struct, frozen=True):
    """The last error in the log since the daemon started."""

    at: str
    event: str
    detail: str | None
    remedy: str | None


class StatusView(msgspec.Struct, frozen=True):
    """The state of the daemon.

    ``roles`` are those of its tasks. ``backup_of`` is the time of the last backup's contents,
    ``certificate_until`` when the first of the listeners' certificates expires; both ``null`` if
    there is none. ``quarantined_tasks`` counts the tasks with batches that a restore has closed.
    ``given_up`` names collections that were given up and whose batch is kept for the same query.
    ``restart_for`` lists the keys of the configuration that were reloaded but need a restart.
    ``to_do`` lists what an operator must do, the most urgent first.
    """

    version: str
    pid: int
    roles: tuple[str, ...]
    uptime_seconds: float
    stopping: bool
    tasks: tuple[TaskLine, ...]
    quarantined_tasks: int
    jobs: tuple[JobsLine, ...]
    uploads: Uploads
    peers: tuple[PeerView, ...]
    keys: tuple[KeyLine, ...]
    clock: ClockView
    disk: DiskView
    backup_of: Moment | None
    certificate_until: Moment | None
    restart_for: tuple[str, ...]
    last_error: ErrorView | None
    given_up: tuple[str, ...] = ()
    to_do: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class _Read:
    backlog: WholeBacklog
    oldest: dict[tuple[Kind, JobState], JobRow]
    look: Look
    collect_before: dict[int, int]
    quarantined_tasks: int
    given_up: list[str]
    keys: list[StoredKey]
    times: KeyTimes


async def show(context: Context, _: Nothing) -> StatusView:
    """Show the state of the daemon, and what an operator must do."""
    await context.tasks.refresh()
    read = await context.read(_read, context.config, context.instant())
    database = context.datastore.path
    disk = await trio.to_thread.run_sync(_disk, context)
    backup = await trio.to_thread.run_sync(last_backup, database)
    unreadable = frozenset(context.tasks.unreadable)
    tasks = tuple(await trio.to_thread.run_sync(_task_lines, unreadable, read))
    error = logs.last_error()
    status = StatusView(
        version=__version__,
        pid=os.getpid(),
        roles=tuple(sorted({task.role for task in tasks})),
        uptime_seconds=round(time.monotonic() - _BEGAN, 1),
        stopping=context.draining.is_set(),
        tasks=tasks,
        quarantined_tasks=read.quarantined_tasks,
        jobs=tuple(_jobs_lines(context, read)),
        uploads=Uploads(context.uploads.waiting, context.config.leader.upload_queue),
        peers=all_peers(context),
        keys=tuple(_key_lines(read)),
        clock=clock.view(context.safe_clock.look()),
        disk=disk,
        backup_of=None if backup is None else rfc3339(backup.state_of),
        certificate_until=rfc3339_or_never(context.certificates.not_after),
        restart_for=context.restart_for,
        last_error=None
        if error is None
        else ErrorView(error.at, error.event, error.detail, error.remedy),
        given_up=tuple(read.given_up),
    )
    return msgspec.structs.replace(status, to_do=what_to_do(status, rfc3339(context.now())))


def _read(tx: Tx, config: Config, at: Instant) -> _Read:
    found = whole_backlog(tx)
    oldest: dict[tuple[Kind, JobState], JobRow] = {}
    kinds: tuple[tuple[Kind, list[Unfinished]], ...] = (
        ("collection", found.collection_jobs),
        ("aggregation", found.aggregation_jobs),
    )
    for kind, rows in kinds:
        for state in {row.state for row in rows}:
            if (first := jobs.oldest(tx, kind, state)) is not None:
                oldest[kind, state] = first
    look = look_at(tx, list(oldest.values()), at.now)
    return _Read(
        found,
        oldest,
        look,
        _collect_before(tx, look, at),
        batches.quarantined_tasks(tx),
        jobs.given_up(tx, _NAMED),
        keys.all_keys(tx),
        key_times(tx, config),
    )


def _collect_before(tx: Tx, look: Look, at: Instant) -> dict[int, int]:
    """Return when the first uncollected report of each Leader's task expires, in ms."""
    found = {}
    for task_pk, sealed in look.tasks.items():
        if sealed.state in (TaskState.DELETED, TaskState.PURGED):
            continue
        try:
            task = sealed.public()
        except UnreadableTask:
            continue
        if task.is_leader and (first := task_standing(tx, task, at).collect_before) is not None:
            found[task_pk] = first
    return found


def _task_lines(unreadable: Collection[int], read: _Read) -> list[TaskLine]:
    """Describe the tasks. This takes long for many, so it runs in a thread."""
    unfinished: defaultdict[int, int] = defaultdict(int)
    for row in (*read.backlog.aggregation_jobs, *read.backlog.collection_jobs):
        unfinished[row.task_pk] += row.jobs
    waiting = {row.task_pk: row.n for row in read.backlog.waiting}
    return [
        TaskLine(
            sealed.id_text,
            sealed.role.name.lower(),
            _state(unreadable, sealed),
            _info(sealed),
            unfinished[task_pk],
            waiting.get(task_pk, 0),
            rfc3339_or_never(read.collect_before.get(task_pk)),
        )
        for task_pk, sealed in read.look.tasks.items()
        if sealed.state is not TaskState.PURGED
    ]


def _state(unreadable: Collection[int], sealed: SealedTask) -> str:
    if sealed.state.is_served and sealed.task_pk in unreadable:
        return "unreadable"
    return sealed.state.value


def _info(sealed: SealedTask) -> str:
    try:
        return sealed.public().configuration.task_info.decode(errors="backslashreplace")
    except UnreadableTask:
        return ""


def _jobs_lines(context: Context, read: _Read) -> list[JobsLine]:
    totals: defaultdict[tuple[Kind, str, JobState], list[int]] = defaultdict(lambda: [0, 0])
    for row in read.backlog.collection_jobs:
        _add(totals["collection", row.role, row.state], row)
    for row in read.backlog.aggregation_jobs:
        _add(totals["aggregation", row.role, row.state], row)
    return [
        JobsLine(kind, role, state.value, count, n, _oldest(context, read, kind, state))
        for (kind, role, state), (count, n) in totals.items()
    ]


def _add(total: list[int], row: Unfinished) -> None:
    total[0] += row.jobs
    total[1] += row.n or 0


def _oldest(context: Context, read: _Read, kind: Kind, state: JobState) -> JobView | None:
    row = read.oldest.get((kind, state))
    return None if row is None else view(context, read.look, row)


def _key_lines(read: _Read) -> list[KeyLine]:
    lines = []
    for key in read.keys:
        if key.state is KeyState.DELETED:
            continue
        following = next_of(key, read.keys, read.times)
        lines.append(
            KeyLine(
                key.config_id,
                key.state.value,
                rfc3339(key.changed_at),
                following.to.value,
                rfc3339_or_never(following.at),
            )
        )
    return lines


def _disk(context: Context) -> DiskView:
    database = context.datastore.path
    found = os.statvfs(database.parent)
    size = database.stat().st_size if database.exists() else 0
    return DiskView(found.f_bavail * found.f_frsize, context.disk.min_free_bytes, size)


SHOW = Operation("status", "GET", "/api/v1/status", Nothing, StatusView, show)
