"""A known task gets its secrets from its file again, after the key that sealed them was lost."""

from __future__ import annotations

from dataclasses import replace

from dapd.commits.add_task import require_role, require_same
from dapd.commits.task_state import require_task
from dapd.crypto import Sealer
from dapd.datastore import tasks
from dapd.datastore.engines import Tx
from dapd.errors import UsageError
from dapd.protocol.task import Task


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
