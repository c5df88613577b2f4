"""Adding a task: once, never with other parameters, never in the other role."""

from __future__ import annotations

from dapd.commits.quarantine import quarantine_added
from dapd.crypto import Sealer
from dapd.datastore import tasks
from dapd.datastore.engines import Tx
from dapd.errors import UsageError
from dapd.protocol.task import Task

_AGREED = {
    "configuration_bytes": "TaskConfiguration",
    "verify_key": "vdaf_verify_key",
    "verification_key_id": "verification_key_id",
    "collector_hpke_config": "collector_hpke_config",
    "aggregator_token": "aggregator_auth_token",
    "inbound_token_hashes": "auth token of those who send requests here",
}
"""What a task can't change in its lifetime (section "Task Configuration")."""


def add_task(tx: Tx, task: Task, sealer: Sealer) -> bool:
    """Store ``task``; ``False`` if this very task is there already, whatever its local settings.

    Raises ``UsageError`` that names what differs.
    """
    if (stored := tasks.find(tx, task.task_id)) is not None:
        known = stored.unseal(sealer)
        if known.role is not task.role:
            raise UsageError(
                f"task {task.id_text} is here already, as its {known.role.name.capitalize()}; "
                "one process can't be both Aggregators of a task"
            )
        differing = [
            name for key, name in _AGREED.items() if getattr(known, key) != getattr(task, key)
        ]
        if differing:
            raise UsageError(
                f"task {task.id_text} exists here with another {' and '.join(differing)}; "
                "a task's parameters never change, make a new one with `dapd task new`"
            )
        return False
    quarantine_added(tx, tasks.insert(tx, task, sealer))
    return True
