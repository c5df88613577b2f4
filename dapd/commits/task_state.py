"""An operator drains, disables or enables a task: one row, followed by the daemon (rule E5)."""

from __future__ import annotations

from dapd.datastore import tasks
from dapd.datastore.engines import Tx
from dapd.datastore.tasks import UnreadableTask
from dapd.errors import UsageError
from dapd.messages.common import b64url_encode
from dapd.protocol.task import Task, TaskState


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
