"""An operator deletes a task: from here on the garbage collector takes away what it has (rule D6).

What stays is a tombstone with a mark above everything that the task ever admitted, so that adding
it again can't admit any of it a second time. Left out: taking the rows away (``dapd.gc``).
"""

from __future__ import annotations

from dataclasses import dataclass

from dapd.commits.task_state import require_task
from dapd.datastore import safe_clock, tasks, uncollected
from dapd.datastore.engines import Tx
from dapd.datastore.uncollected import Uncollected
from dapd.errors import UsageError
from dapd.protocol.task import Instant, Task


@dataclass(frozen=True, slots=True)
class Standing:
    """What of a task is uncollected, and when (ms) the first of it expires; ``None`` for never."""

    uncollected: Uncollected
    collect_before: int | None


def standing(tx: Tx, task: Task, at: Instant) -> Standing:
    """Judged by the clock that expires things."""
    left = uncollected.of_task(tx, task.task_pk, task.expired_before_at(at))
    age = task.settings.report_expiry_age
    if left.first_expiring is None or age is None:
        return Standing(left, None)
    return Standing(left, task.ms_of(left.first_expiring + 1) + age * 1000)


def delete_task(
    tx: Tx, task_id: bytes, now: int, early_leeway: float, *, discard: bool
) -> Uncollected:
    """Delete it, raise its mark; what was uncollected, which ``discard`` gives up.

    ``early_leeway`` is in seconds: no report further ahead of ``now`` (ms) was admitted.
    Raises ``UsageError``: it is unknown or deleted, or has something uncollected.
    """
    task = require_task(tx, task_id)
    left = standing(tx, task, safe_clock.instant(tx, now)).uncollected
    if left and not discard:
        raise UsageError(_refusal(task, left))
    mark = max(
        task.time_of(now + int(early_leeway * 1000)) + 1,
        task.quarantined_before,
        uncollected.newest(tx, task.task_pk) + 1,  # whatever the clock said when it was admitted
    )
    tasks.delete(tx, task.task_pk, mark)
    return left


def _refusal(task: Task, left: Uncollected) -> str:
    parts = {
        "reports that are not aggregated yet": left.waiting,
        "aggregated reports that no collection has taken": left.aggregated,
        "unfinished aggregation jobs": left.jobs,
        "collections whose result nobody has fetched": left.collections,
    }
    listed = ", ".join(f"{count} {what}" for what, count in parts.items() if count)
    first = "drain it and collect them first" if task.is_leader else "let its Leader end it first"
    return f"task {task.id_text} has {listed}; {first}, or give them up with --discard"
