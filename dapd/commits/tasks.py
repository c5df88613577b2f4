"""The transactions of a task's life: add, drain, disable, enable, rekey, delete, replace tokens.

A task is added once, never with other parameters, never in the other role. A deleted task leaves a
tombstone whose watermark lies above everything that it ever admitted, so that adding the task again
admits none of it a second time (rule D6). Its secrets then come from the file anew. Left out:
deleting a task's rows (``dapd.gc``).
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from dapd.commits.restore import quarantine_added
from dapd.crypto import Sealer
from dapd.datastore import safe_clock, tasks, uncollected
from dapd.datastore.sqlite import Tx
from dapd.datastore.tasks import SealedTask, UnreadableTask
from dapd.datastore.uncollected import Uncollected
from dapd.errors import UsageError
from dapd.messages.common import Role, b64url_encode
from dapd.protocol.task import Instant, Task, TaskState

_PUBLIC = {
    "configuration_bytes": "TaskConfiguration",
    "verification_key_id": "verification_key_id",
    "collector_hpke_config": "collector_hpke_config",
}
_AGREED = {**_PUBLIC, "verify_key": "vdaf_verify_key"}
"""What a task can't change in its lifetime (section "Task Configuration")."""


def add_task(tx: Tx, task: Task, sealer: Sealer) -> bool:
    """Store ``task``; ``False`` if this very task is there already, whatever its local settings.

    Raises ``UsageError`` that names what differs.
    """
    stored = tasks.find(tx, task.task_id)
    if stored is None:
        quarantine_added(tx, tasks.insert(tx, task, sealer).task_pk)
        return True
    require_role(task, stored.role)
    if stored.state is TaskState.DELETED:
        raise UsageError(
            f"task {task.id_text} is still being deleted; try again in a minute, "
            "with the daemon running: it takes away what is left of it"
        )
    if stored.state is TaskState.PURGED:
        require_same(task, stored.public(), {"configuration_bytes": "TaskConfiguration"})
        revived = tasks.revive(tx, stored.task_pk, task, sealer)
        quarantine_added(tx, stored.task_pk)
        return revived
    _require_known(task, stored, sealer)
    return False


def require_role(task: Task, known: Role) -> None:
    """Raises ``UsageError`` for the other Aggregator's file."""
    if task.role is not known:
        raise UsageError(
            f"task {task.id_text} is here already, as its {known.name.capitalize()}; "
            "one process can't be both Aggregators of a task"
        )


def require_same(task: Task, known: Task, names: dict[str, str] = _PUBLIC) -> None:
    """Raises ``UsageError`` for parameters that are not those of the known task."""
    differing = [name for key, name in names.items() if getattr(known, key) != getattr(task, key)]
    if differing:
        raise UsageError(
            f"task {task.id_text} exists here with another {' and '.join(differing)}; "
            "a task's parameters never change, make a new one with `dapd task new`"
        )


def _require_known(task: Task, stored: SealedTask, sealer: Sealer) -> None:
    try:
        known = stored.unseal(sealer)
    except UnreadableTask as error:
        raise UsageError(f"task {task.id_text} is here already, but {error}; {error.remedy}") from (
            None
        )
    require_same(task, known, _AGREED)
    inbound = set(task.inbound_token_hashes) <= set(known.inbound_token_hashes)
    if not inbound or task.aggregator_token != known.aggregator_token:
        raise UsageError(
            f"task {task.id_text} is here already, with another token; "
            "tokens change with `dapd task token`"
        )


def set_task_state(tx: Tx, task_id: bytes, state: TaskState) -> bool:
    """Make it active, draining or disabled; ``False`` if it was so already.

    Raises ``UsageError``: the task is unknown, deleted, or a Helper's that is to drain.
    """
    task = require_task(tx, task_id)
    if state is TaskState.DRAINING and not task.is_leader:
        raise UsageError(
            f"task {task.id_text}: this is its Helper, which takes no uploads; "
            "drain it at its Leader, or stop it here with `dapd task disable`"
        )
    return tasks.set_state(tx, task.task_pk, state)


def require_task(tx: Tx, task_id: bytes) -> Task:
    """The task without its secrets, unless it is deleted. Raises ``UsageError``."""
    stored = tasks.find(tx, task_id)
    if stored is None:
        raise UsageError(f"no task {b64url_encode(task_id)} here; `dapd task list` shows them")
    if stored.state in (TaskState.DELETED, TaskState.PURGED):
        raise UsageError(
            f"task {stored.id_text} is deleted; `dapd task add` brings it back, "
            "without the reports it had"
        )
    try:
        return stored.public()
    except UnreadableTask as error:
        raise UsageError(f"task {stored.id_text}: {error}; {error.remedy}") from None


def rekey_task(tx: Tx, task: Task, sealer: Sealer) -> bool:
    """Seal the verify key and the outbound token of ``task`` anew; nothing else changes.

    Inbound tokens are not sealed, and may have been replaced since the file was written: those that
    are valid stay so, and only where none is left the file's is taken. ``False`` if the file's is
    not among them. Raises ``UsageError`` that names what differs.
    """
    known = require_task(tx, task.task_id)
    require_role(task, known.role)
    require_same(task, known)
    stored = tasks.find(tx, task.task_id)
    assert stored is not None
    if stored.is_readable(sealer):
        raise UsageError(
            f"task {task.id_text} has all its secrets; tokens change with `dapd task token`, "
            "the verify key never"
        )
    valid = known.inbound_token_hashes or task.inbound_token_hashes
    restored = replace(task, task_pk=known.task_pk, inbound_token_hashes=valid)
    tasks.set_secrets(tx, restored, sealer)
    return set(task.inbound_token_hashes) <= set(valid)


_MOST_TOKENS = 2


def add_token(tx: Tx, task_id: bytes, token_hash: bytes) -> None:
    """Let another inbound token in. Raises ``UsageError`` for a third one."""
    task = require_task(tx, task_id)
    valid = task.inbound_token_hashes
    if len(valid) >= _MOST_TOKENS:
        raise UsageError(
            f"task {task.id_text} has {len(valid)} valid tokens; once the sender uses the newer "
            "one, take the older away with `dapd task token remove`"
        )
    tasks.set_inbound_tokens(tx, task.task_pk, (*valid, token_hash))


def remove_token(tx: Tx, task_id: bytes) -> bytes:
    """Let the older inbound token in no more; its hash. Raises ``UsageError`` for the last one."""
    task = require_task(tx, task_id)
    if len(task.inbound_token_hashes) < _MOST_TOKENS:
        raise UsageError(
            f"task {task.id_text} has one valid token, without which nobody could get in; "
            "add its successor first, with `dapd task token add`"
        )
    older, *rest = task.inbound_token_hashes
    tasks.set_inbound_tokens(tx, task.task_pk, rest)
    return older


def use_token(tx: Tx, task_id: bytes, token: str, sealer: Sealer) -> None:
    """What this Leader sends to its Helper from now on. Raises ``UsageError`` on a Helper."""
    task = require_task(tx, task_id)
    if not task.is_leader:
        raise UsageError(
            f"task {task.id_text}: this is its Helper, which sends no requests; "
            "give the token to the Leader's operator"
        )
    tasks.set_outbound_token(tx, task, token, sealer)


@dataclass(frozen=True, slots=True)
class TaskStanding:
    """What of a task is uncollected, and when (ms) the first of it expires; ``None`` for never."""

    uncollected: Uncollected
    collect_before: int | None


def task_standing(tx: Tx, task: Task, at: Instant) -> TaskStanding:
    """Judged by the clock that expires things."""
    left = uncollected.of_task(tx, task.task_pk, task.expired_before_at(at))
    age = task.settings.report_expiry_age
    if left.first_expiring is None or age is None:
        return TaskStanding(left, None)
    return TaskStanding(left, task.ms_of(left.first_expiring + 1) + age * 1000)


def delete_task(
    tx: Tx, task_id: bytes, now: int, early_leeway: float, *, discard: bool
) -> Uncollected:
    """Delete it, raise its mark; what was uncollected, which ``discard`` gives up.

    ``early_leeway`` is in seconds: no report further ahead of ``now`` (ms) was admitted.
    Raises ``UsageError``: it is unknown or deleted, or has something uncollected.
    """
    task = require_task(tx, task_id)
    left = task_standing(tx, task, safe_clock.instant(tx, now)).uncollected
    if left and not discard:
        raise UsageError(_delete_refusal(task, left))
    mark = max(
        task.time_of(now + int(early_leeway * 1000)) + 1,
        task.quarantined_before,
        uncollected.newest(tx, task.task_pk) + 1,  # whatever the clock said when it was admitted
    )
    tasks.delete(tx, task.task_pk, mark)
    return left


def _delete_refusal(task: Task, left: Uncollected) -> str:
    parts = {
        "reports that are not aggregated yet": left.waiting,
        "aggregated reports that no collection has taken": left.aggregated,
        "unfinished aggregation jobs": left.jobs,
        "collections whose result nobody has fetched": left.collections,
    }
    listed = ", ".join(f"{count} {what}" for what, count in parts.items() if count)
    first = "drain it and collect them first" if task.is_leader else "let its Leader end it first"
    return f"task {task.id_text} has {listed}; {first}, or give them up with --discard"
