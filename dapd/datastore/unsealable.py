"""Changes to rows whose sealed values can't be opened any more, one for each column.

Ids, watermarks and collected ranges stay. ``dapd.datastore.sealed`` finds the rows;
``dapd.commits.sealing_keys`` handles the consequences.
"""

from __future__ import annotations

from dataclasses import dataclass

from dapd.datastore.sqlite import Tx
from dapd.protocol.states import ChunkState

_Q_CHUNK = "SELECT task_pk, n, state, job_pk FROM report_chunks WHERE chunk_pk = :pk"
_Q_DROP_SHARE = """
DELETE FROM batch_shares WHERE share_pk = :pk RETURNING task_pk, n, bucket"""
_Q_DROP_PRIVATE_KEY = """
UPDATE hpke_keypairs SET state = 'deleted', private_key = x'', changed_at = :now
WHERE config_id = :pk"""
_Q_EMPTY_VERIFY_KEY = "UPDATE tasks SET verify_key = x'' WHERE task_pk = :pk"
_Q_EMPTY_OUTBOUND = "UPDATE tasks SET aggregator_token = x'' WHERE task_pk = :pk"


@dataclass(frozen=True, slots=True)
class LostChunk:
    """A chunk whose rows are lost; ``job_pk`` is its job, if it is assigned."""

    task_pk: int
    n: int
    state: ChunkState
    job_pk: int | None


@dataclass(frozen=True, slots=True)
class LostShare:
    """A lost contribution of ``n`` reports to ``bucket``."""

    task_pk: int
    n: int
    bucket: bytes


def chunk(tx: Tx, chunk_pk: int) -> LostChunk:
    """Return the chunk's present state."""
    row = tx.one(_Q_CHUNK, pk=chunk_pk)
    assert row is not None
    task_pk, n, state, job_pk = row
    return LostChunk(task_pk, n, ChunkState(state), job_pk)


def drop_share(tx: Tx, share_pk: int) -> LostShare:
    """Delete a contribution from its bucket, which the caller then closes."""
    row = tx.one(_Q_DROP_SHARE, pk=share_pk)
    assert row is not None
    return LostShare(*row)


def drop_private_key(tx: Tx, config_id: int, now: int) -> None:
    """Delete a key pair; its id is the last to be reused (rule F1)."""
    tx.execute(_Q_DROP_PRIVATE_KEY, pk=config_id, now=now)


def empty_verify_key(tx: Tx, task_pk: int) -> None:
    """Delete a verify key; the task is unreadable until it gets its secrets again."""
    tx.execute(_Q_EMPTY_VERIFY_KEY, pk=task_pk)


def empty_token(tx: Tx, task_pk: int) -> None:
    """Delete an outbound token; the task is unreadable until it gets its secrets again."""
    tx.execute(_Q_EMPTY_OUTBOUND, pk=task_pk)
