"""The jobs' operations: list, show, retry, abandon (rule D4).

A job's name is ``a12`` or ``c3``: aggregation or collection, and the number of its row.
"""

from __future__ import annotations

import re
from typing import Annotated, Literal

import msgspec

from dapd.admin.job_view import JobDetail, JobView, Look, Progress, detail, look_at, view
from dapd.admin.operation import Operation
from dapd.commits.abandon import abandon as give_up
from dapd.datastore import Tx, batches, chunks, collections, jobs, leases, outstanding, watermarks
from dapd.datastore import tasks as task_table
from dapd.datastore.jobs import JobRow, Wanted
from dapd.datastore.tasks import UnreadableTask
from dapd.errors import UsageError
from dapd.messages.common import b64url_decode, b64url_encode
from dapd.protocol.states import UNFINISHED, CollectionState, Kind
from dapd.protocol.task import Instant, Task
from dapd.runtime.context import Context

_NAME = re.compile(r"([ac])([1-9][0-9]{0,17})")
_KINDS: dict[str, Kind] = {"a": "aggregation", "c": "collection"}

State = Literal[
    "assigned", "stored", "polling", "received", "waiting", "frozen",
    "finished", "abandoned", "expired", "lost", "failed", "deleted",
]  # fmt: skip


class JobsRequest(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Which jobs to list. ``task`` is an id or its beginning. Lists unfinished jobs, oldest first;
    with ``ended``, which a ``state`` of ended jobs implies, all jobs, newest first. ``cursor`` is
    ``next`` of the page before, with the same other fields.
    """

    task: str | None = None
    state: State | None = None
    limit: Annotated[int, msgspec.Meta(ge=1, le=1000)] = 50
    ended: bool = False
    cursor: Annotated[str, msgspec.Meta(max_length=100)] | None = None


class JobPage(msgspec.Struct, frozen=True):
    """A page of jobs, collections first. ``next`` is the cursor of the next page, ``null`` on the
    last one.
    """

    jobs: tuple[JobView, ...]
    next: str | None


class JobRequest(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One job; ``job`` is a name such as ``a12``, or the id of its resource."""

    job: Annotated[str, msgspec.Meta(max_length=100)]


class AbandonRequest(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A job to give up; ``confirm`` repeats ``job``, because it can't be undone."""

    job: Annotated[str, msgspec.Meta(max_length=100)]
    confirm: Annotated[str, msgspec.Meta(max_length=100)]


class Abandoned(msgspec.Struct, frozen=True):
    """The job given up. Its ``lost`` reports are in no result, but the Helper may count them."""

    job: str
    task: str
    lost: int


async def list_jobs(context: Context, request: JobsRequest) -> JobPage:
    """List the jobs of all tasks or of one, with why each waits."""
    after = None if request.cursor is None else _position(request.cursor)
    look = await context.read(_page, request, after, context.now())
    rows = look.rows[: request.limit]
    following = _cursor(rows[-1]) if len(look.rows) > request.limit else None
    return JobPage(tuple(view(context, look, row) for row in rows), following)


async def show(context: Context, request: JobRequest) -> JobDetail:
    """Show one job, and what it waits for. Raises ``UsageError`` if there is none."""
    return detail(context, await context.read(_one, request.job, context.instant()))


async def retry(context: Context, request: JobRequest) -> JobDetail:
    """Make an unfinished job due now; the answer says what it still waits for.

    Raises ``UsageError`` if it has ended or is running.
    """
    look = await context.run(_hurry, request.job, context.instant())
    context.jobs.ring()
    return detail(context, look)


async def abandon(context: Context, request: AbandonRequest) -> Abandoned:
    """Give up an unfinished job of a Leader, for good. Raises ``UsageError``.

    An aggregation job's reports are counted as lost, and never go into another job. A collection
    job is deleted; its batch stays collected if the Helper may have been asked. A collection that
    dapd has given up loses the batch that it keeps, and its reports are counted.
    """
    if request.confirm != request.job:
        raise UsageError(f"the confirmation is {request.confirm!r}, but the job {request.job!r}")
    row, task, lost = await context.run(_abandon, request.job, context.instant())
    context.job_ended((row.kind, row.id))
    context.jobs.ring()
    context.chunks.ring()
    return Abandoned(row.name, task, lost)


def _page(tx: Tx, request: JobsRequest, after: tuple[Kind, int] | None, now: int) -> Look:
    ended = request.ended or (request.state is not None and request.state not in UNFINISHED)
    task_pk = (
        None
        if request.task is None
        else task_table.named(task_table.all_tasks(tx), request.task).task_pk
    )
    wanted = Wanted(task_pk, request.state, ended)
    return look_at(tx, jobs.page(tx, wanted, after, request.limit + 1), now)


def _one(tx: Tx, name: str, at: Instant) -> Look:
    row = _named(tx, name)
    return look_at(tx, [row], at.now, _progress(tx, row, at))


def _hurry(tx: Tx, name: str, at: Instant) -> Look:
    row = _named(tx, name)
    if not leases.make_due(tx, row.kind, row.pk, at.now):
        ended = row.state not in UNFINISHED
        what = f"has ended: {row.state}" if ended else "is running now"
        raise UsageError(f"job {row.name} {what}")
    return _one(tx, row.name, at)


def _abandon(tx: Tx, name: str, at: Instant) -> tuple[JobRow, str, int]:
    row = _named(tx, name)
    task = next(each for each in task_table.all_tasks(tx) if each.task_pk == row.task_pk)
    return row, task.id_text, give_up(tx, row, at)


def _progress(tx: Tx, row: JobRow, at: Instant) -> Progress | None:
    if row.state is not CollectionState.WAITING:
        return None
    sealed = next(each for each in task_table.all_tasks(tx) if each.task_pk == row.task_pk)
    try:
        task = sealed.public()
    except UnreadableTask:
        return None
    job = collections.by_pk(tx, row.pk)
    batch, too_early_after = (job.lo, job.hi), task.too_early_after_at(at)
    backlog = chunks.backlog(tx, task.task_pk, batch, None, too_early_after)
    return Progress(
        _aggregated(tx, task, job.lo, job.hi, at),
        backlog.assigned,
        backlog.waiting,
        task.configuration.min_batch_size,
    )


def _aggregated(tx: Tx, task: Task, lo: bytes, hi: bytes, at: Instant) -> int:
    if task.by_time:
        return batches.aggregated(tx, task.task_pk, lo, hi)
    mark = watermarks.expired_before(tx, task, at)
    found = outstanding.open_batches(tx, task.task_pk, mark)
    return max((batch.aggregated for batch in found), default=0)


def _named(tx: Tx, name: str) -> JobRow:
    """Return the job of this name or resource id. Raises ``UsageError``."""
    if named := _NAME.fullmatch(name):
        row = jobs.by_pk(tx, _KINDS[named[1]], int(named[2]))
        found = [] if row is None else [row]
    else:
        try:
            found = jobs.by_id(tx, b64url_decode(name))
        except ValueError:
            found = []
    if len(found) != 1:
        raise UsageError(f"no job {name}; `dapd jobs list --all` shows them")
    return found[0]


def _cursor(row: JobRow) -> str:
    return b64url_encode(row.name.encode())


def _position(cursor: str) -> tuple[Kind, int]:
    try:
        named = _NAME.fullmatch(b64url_decode(cursor).decode())
    except ValueError:
        named = None
    if named is None:
        raise UsageError("invalid cursor; use `next` of the page before")
    return _KINDS[named[1]], int(named[2])


LIST = Operation("jobs_list", "GET", "/api/v1/jobs", JobsRequest, JobPage, list_jobs)
SHOW = Operation("job_show", "GET", "/api/v1/job", JobRequest, JobDetail, show)
RETRY = Operation("job_retry", "POST", "/api/v1/job/retry", JobRequest, JobDetail, retry)
ABANDON = Operation(
    "job_abandon", "POST", "/api/v1/job/abandon", AbandonRequest, Abandoned, abandon
)
