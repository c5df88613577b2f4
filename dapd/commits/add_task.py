"""Adding a task: once, never with other parameters, never in the other role.

A deleted task comes back to life from its tombstone: its watermark stays, so that nothing it ever
admitted is admitted again (rule D6). Its secrets come from the file anew.
"""

from __future__ import annotations

from dapd.commits.quarantine import quarantine_added
from dapd.crypto import Sealer
from dapd.datastore import tasks
from dapd.datastore.engines import Tx
from dapd.datastore.tasks import SealedTask, UnreadableTask
from dapd.errors import UsageError
from dapd.messages.common import Role
from dapd.protocol.task import Task, TaskState

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
