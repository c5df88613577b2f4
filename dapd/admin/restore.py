"""POST /restore/accept: allow collections of batches that a restore has closed."""

from __future__ import annotations

import msgspec

from dapd.admin.operation import Operation
from dapd.commits.restore import accepted_range, restore_accept
from dapd.datastore import Tx, tasks
from dapd.datastore.tasks import Outline
from dapd.errors import UsageError
from dapd.messages.common import BATCH_ID_SIZE, b64url_decode, b64url_encode
from dapd.protocol.batches import BucketRange
from dapd.runtime.context import Context
from dapd.wording import count

_LARGEST_TIME = 2**64 - 1


class Accept(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What to reopen. In the time-interval mode ``since`` and ``until``, in seconds and multiples
    of the task's time precision; in the leader-selected mode ``batch``, a batch id. Without any of
    them: all that is quarantined.
    """

    task: str
    since: int | None = None
    until: int | None = None
    batch: str | None = None


class Reopened(msgspec.Struct, frozen=True):
    """The intervals (start and end in seconds) or batch ids that may be collected again."""

    task: str
    intervals: tuple[tuple[int, int], ...] = ()
    batches: tuple[str, ...] = ()


def accept(tx: Tx, request: Accept) -> Reopened:
    """Reopen what ``request`` names. Raises ``UsageError`` if nothing of it is quarantined."""
    task = tasks.named(tasks.outlines(tx), request.task)
    opened = restore_accept(tx, task, _range(task, request))
    if not opened:
        raise UsageError("nothing of that is quarantined; `dapd restore status` shows what is")
    if not task.by_time:
        return Reopened(request.task, batches=tuple(b64url_encode(each.lo) for each in opened))
    return Reopened(request.task, intervals=tuple(seconds(task, each) for each in opened))


def seconds(task: Outline, interval: BucketRange) -> tuple[int, int]:
    """Return start and end, in seconds, of a range in the time-interval mode."""
    precision = task.configuration.time_precision
    lo, hi = (int.from_bytes(each, "big") * precision for each in interval)
    return lo, hi


def _range(task: Outline, request: Accept) -> BucketRange:
    named = request.since is not None or request.until is not None
    if request.batch is not None:
        if task.by_time or named:
            raise UsageError("--batch is for leader-selected tasks, and excludes an interval")
        return accepted_range(task, _batch_id(request.batch))
    if not named:
        return accepted_range(task, None)
    if not task.by_time:
        raise UsageError("this task is leader-selected: give --batch, or nothing")
    precision = task.configuration.time_precision
    start = 0 if request.since is None else request.since
    end = _LARGEST_TIME * precision if request.until is None else request.until
    if start % precision or end % precision or not 0 <= start < end <= _LARGEST_TIME * precision:
        raise UsageError(
            f"from {start} until {end}: both must be multiples of time_precision, "
            f"{count(precision, 'second')}, and the second one later"
        )
    return accepted_range(task, (start // precision, end // precision))


def _batch_id(text: str) -> bytes:
    try:
        batch_id = b64url_decode(text)
    except ValueError as error:
        raise UsageError(f"batch {text!r}: {error}; copy it from `dapd restore status`") from None
    if len(batch_id) != BATCH_ID_SIZE:
        raise UsageError(f"batch {text!r}: {count(len(batch_id), 'byte')}, not {BATCH_ID_SIZE}")
    return batch_id


async def _run(context: Context, request: Accept) -> Reopened:
    """Allow collections of batches that a restore has closed.

    Raises ``UsageError`` if nothing of it is quarantined.
    """
    reopened = await context.run(accept, request)
    context.jobs.ring()
    return reopened


ACCEPT = Operation("restore_accept", "POST", "/api/v1/restore/accept", Accept, Reopened, _run)
