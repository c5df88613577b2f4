"""Replacing the tokens of a task while both sides work on it: the receiver first (rule A9).

The receiver takes a second token, the sender uses it from then on, the receiver takes the first
one away. Inbound tokens are known by their hashes, the older first; the outbound one is sealed.
"""

from __future__ import annotations

from dapd.commits.task_state import require_task
from dapd.crypto import Sealer
from dapd.datastore import tasks
from dapd.datastore.engines import Tx
from dapd.errors import UsageError

_MOST = 2


def add_token(tx: Tx, task_id: bytes, token_hash: bytes) -> None:
    """Let another inbound token in. Raises ``UsageError`` for a third one."""
    task = require_task(tx, task_id)
    valid = task.inbound_token_hashes
    if len(valid) >= _MOST:
        raise UsageError(
            f"task {task.id_text} has {len(valid)} valid tokens; once the sender uses the newer "
            "one, take the older away with `dapd task token remove`"
        )
    tasks.set_inbound_tokens(tx, task.task_pk, (*valid, token_hash))


def remove_token(tx: Tx, task_id: bytes) -> bytes:
    """Let the older inbound token in no more; its hash. Raises ``UsageError`` for the last one."""
    task = require_task(tx, task_id)
    if len(task.inbound_token_hashes) < _MOST:
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
