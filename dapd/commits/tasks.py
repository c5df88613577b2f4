"""The transactions of a task's life: add, drain, disable, enable, rekey, replace tokens, delete.

A task is added once, never with other parameters, never in the other role. A deleted task leaves a
tombstone whose watermark is above every report that it ever admitted, so a task added again admits
none of them a second time (rule D6). It takes its secrets from the new file. ``dapd.gc`` deletes
the rows of a deleted task.
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
from dapd.wording import count

_PUBLIC = {
    "configuration_bytes": "TaskConfiguration",
    "verification_key_id": "verification_key_id",
    "collector_hpke_config": "collector_hpke_config",
}
_AGREED = {**_PUBLIC, "verify_key": "vdaf_verify_key"}
"""The parameters that never change in a task's lifetime (section "Task Configuration")."""


def add_task(tx: Tx, task: Task, sealer: Sealer) -> bool:
    """Store ``task``; return ``False`` if it is stored already, with whatever local settings.

    Raises ``UsageError`` that names the differing parameters.
    """
    stored = tasks.find(tx, task.task_id)
    if stored is None:
        quarantine_added(tx, tasks.insert(tx, task, sealer).task_pk)
        return True
    require_role(task, stored.role)
    if stored.state is TaskState.DELETED:
        raise UsageError(
            f"task {task.id_text} is still being deleted; try again in a minute, "
            "with the daemon running, which deletes the task's data"
        )
    if stored.state is TaskState.PURGED:
        require_same_parameters(task, stored.public(), {"configuration_bytes": "TaskConfiguration"})
        revived = tasks.revive(tx, stored.task_pk, task, sealer)
        quarantine_added(tx, stored.task_pk)
        return revived
    _require_known(task, stored, sealer)
    return False


def require_role(task: Task, known: Role) -> None:
    """Raise ``UsageError`` if ``task`` comes from the other Aggregator's file."""
    if task.role is not known:
        raise UsageError(
            f"this Aggregator already serves task {task.id_text} as its {known.name.capitalize()}; "
            "one process can't be both Aggregators of a task"
        )


def require_same_parameters(task: Task, known: Task, names: dict[str, str] = _PUBLIC) -> None:
    """Raise ``UsageError`` if parameters differ from those of the known task."""
    differing = [name for key, name in names.items() if getattr(known, key) != getattr(task, key)]
    if differing:
        raise UsageError(
            f"task {task.id_text} exists here with another {' and '.join(differing)}; "
            "a task's parameters never change; make a new task with `dapd task new`"
        )


def _require_known(task: Task, stored: SealedTask, sealer: Sealer) -> None:
    try:
        known = stored.unseal(sealer)
    except UnreadableTask as error:
        raise UsageError(f"task {task.id_text} exists here, but {error}; {error.remedy}") from (
            None
        )
    require_same_parameters(task, known, _AGREED)
    inbound = set(task.inbound_token_hashes) <= set(known.inbound_token_hashes)
    if not inbound or task.aggregator_token != known.aggregator_token:
        raise UsageError(
            f"task {task.id_text} exists here with another token; "
            "to replace tokens, use `dapd task token`"
        )


def set_task_state(tx: Tx, task_id: bytes, state: TaskState) -> bool:
    """Make a task active, draining or disabled; return ``False`` if it is so already.

    Raises ``UsageError`` if the task is unknown or deleted, or if a Helper's is to drain.
    """
    task = require_task(tx, task_id)
    if state is TaskState.DRAINING and not task.is_leader:
        raise UsageError(
            f"task {task.id_text}: this Aggregator is the task's Helper, which takes no uploads; "
            "drain it at its Leader, or stop it here with `dapd task disable`"
        )
    return tasks.set_state(tx, task.task_pk, state)


def require_task(tx: Tx, task_id: bytes) -> Task:
    """Return the task without its secrets. Raises ``UsageError`` if it is unknown or deleted."""
    stored = tasks.find(tx, task_id)
    if stored is None:
        raise UsageError(f"no task {b64url_encode(task_id)} here; see `dapd task list`")
    if stored.state in (TaskState.DELETED, TaskState.PURGED):
        raise UsageError(
            f"task {stored.id_text} is deleted; `dapd task add` brings it back, "
            "without its former reports"
        )
    try:
        return stored.public()
    except UnreadableTask as error:
        raise UsageError(f"task {stored.id_text}: {error}; {error.remedy}") from None


def rekey_task(tx: Tx, task: Task, sealer: Sealer) -> bool:
    """Restore the verify key and the outbound token from ``task``'s file; nothing else changes.

    Inbound tokens are not sealed, and may have been replaced since the file was written: valid ones
    stay, and the file's is used only if there is none. Return ``False`` if the file's is not valid
    afterwards. Raises ``UsageError`` that names the differing parameters.
    """
    known = require_task(tx, task.task_id)
    require_role(task, known.role)
    require_same_parameters(task, known)
    stored = tasks.find(tx, task.task_id)
    assert stored is not None
    if stored.is_readable(sealer):
        raise UsageError(
            f"task {task.id_text} has all its secrets; to replace tokens, use `dapd task token`; "
            "the verify key never changes"
        )
    valid = known.inbound_token_hashes or task.inbound_token_hashes
    restored = replace(task, task_pk=known.task_pk, inbound_token_hashes=valid)
    tasks.set_secrets(tx, restored, sealer)
    return set(task.inbound_token_hashes) <= set(valid)


_MOST_TOKENS = 2


def add_token(tx: Tx, task_id: bytes, token_hash: bytes) -> None:
    """Accept another inbound token. Raises ``UsageError`` for a third one."""
    task = require_task(tx, task_id)
    valid = task.inbound_token_hashes
    if len(valid) >= _MOST_TOKENS:
        raise UsageError(
            f"task {task.id_text} has {count(len(valid), 'valid token')}; once the sender uses "
            "the newer one, take the older away with `dapd task token remove`"
        )
    tasks.set_inbound_tokens(tx, task.task_pk, (*valid, token_hash))


def remove_token(tx: Tx, task_id: bytes) -> bytes:
    """Stop accepting the older inbound token, and return its hash.

    Raises ``UsageError`` if there is only one.
    """
    task = require_task(tx, task_id)
    if len(task.inbound_token_hashes) < _MOST_TOKENS:
        raise UsageError(
            f"task {task.id_text} has only one valid token, which its sender needs; "
            "add its successor first, with `dapd task token add`"
        )
    older, *rest = task.inbound_token_hashes
    tasks.set_inbound_tokens(tx, task.task_pk, rest)
    return older


def use_token(tx: Tx, task_id: bytes, token: str, sealer: Sealer) -> None:
    """Send this token to the Helper from now on. Raises ``UsageError`` on a Helper."""
    task = require_task(tx, task_id)
    if not task.is_leader:
        raise UsageError(
            f"task {task.id_text}: this Aggregator is the task's Helper, which sends no requests; "
            "give the token to the Leader's operator"
        )
    tasks.set_outbound_token(tx, task, token, sealer)


@dataclass(frozen=True, slots=True)
class TaskStanding:
    """A task's uncollected data, and when (ms) the first of it expires; ``None`` means never."""

    uncollected: Uncollected
    collect_before: int | None


def task_standing(tx: Tx, task: Task, at: Instant) -> TaskStanding:
    """Return what is uncollected of a task, and until when it can be collected."""
    left = uncollected.of_task(tx, task.task_pk, task.expired_before_at(at))
    age = task.settings.report_expiry_age
    if left.first_expiring is None or age is None:
        return TaskStanding(left, None)
    return TaskStanding(left, task.ms_of(left.first_expiring + 1) + age * 1000)


def delete_task(
    tx: Tx, task_id: bytes, now: int, early_leeway: float, *, discard: bool
) -> Uncollected:
    """Delete the task, raise its watermark, and return what was uncollected.

    ``early_leeway`` is in seconds: no report further ahead of ``now`` (ms) was admitted. Raises
    ``UsageError`` if the task is unknown or deleted, or if something is uncollected and
    ``discard`` is false.
    """
    task = require_task(tx, task_id)
    left = task_standing(tx, task, safe_clock.instant(tx, now)).uncollected
    if left and not discard:
        raise UsageError(_delete_refusal(task, left))
    mark = max(
        task.time_of(now + int(early_leeway * 1000)) + 1,
        task.quarantined_before,
        uncollected.newest(tx, task.task_pk) + 1,  # in case the clock was ahead at that time
    )
    tasks.delete(tx, task.task_pk, mark)
    return left


def _delete_refusal(task: Task, left: Uncollected) -> str:
    parts = {
        ("report", "to be aggregated"): left.waiting,
        ("aggregated report", "to be collected"): left.aggregated,
        ("unfinished aggregation job", ""): left.jobs,
        ("collection", "whose result nobody has fetched"): left.collections,
    }
    listed = ", ".join(
        f"{count(number, noun)} {what}".rstrip() for (noun, what), number in parts.items() if number
    )
    first = "drain it and collect them first" if task.is_leader else "let its Leader end it first"
    return f"task {task.id_text} has {listed}; {first}, or give them up with --discard"
