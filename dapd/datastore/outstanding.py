"""Leader-selected batches, each until a collection job takes it (rules A8, C6)."""

from __future__ import annotations

from dataclasses import dataclass

from dapd.datastore.sqlite import Row, Tx
from dapd.protocol.batches import OpenBatch

_OPEN = """
SELECT batch_pk, room, batch_id, aggregated, in_flight, suspect
FROM (SELECT b.batch_pk, b.room, b.batch_id,
  (SELECT COALESCE(sum(s.n), 0) FROM batch_shares AS s
   WHERE s.task_pk = b.task_pk AND s.bucket = b.batch_id) AS aggregated,
  (SELECT max(s.time_max) FROM batch_shares AS s
   WHERE s.task_pk = b.task_pk AND s.bucket = b.batch_id) AS newest,
  (SELECT COALESCE(sum(j.n), 0) FROM aggregation_jobs AS j
   WHERE j.task_pk = b.task_pk AND j.bucket = b.batch_id
    AND j.state IN ('assigned', 'stored', 'polling', 'received')) AS in_flight,
  EXISTS (SELECT 1 FROM suspect_batches AS u
   WHERE u.task_pk = b.task_pk AND u.bucket = b.batch_id) AS suspect
FROM outstanding_batches AS b INDEXED BY {index}
WHERE b.task_pk = :task_pk AND b.collection_pk IS NULL AND {which}
  AND NOT EXISTS (SELECT 1 FROM collected AS c WHERE c.task_pk = b.task_pk AND c.lo = b.batch_id
    AND c.state = 'quarantined'))
WHERE COALESCE(newest, :expired_before) >= :expired_before ORDER BY batch_pk"""
_Q_OPEN = _OPEN.format(index="outstanding_open", which="b.batch_pk > :after") + " LIMIT :page"
_Q_ROOMY = _OPEN.format(index="outstanding_roomy", which="b.room IS NOT 0")
_Q_NOTE_ROOM = """
UPDATE outstanding_batches SET room = :room WHERE task_pk = :task_pk AND batch_id = :batch_id"""
_Q_LOOK_AGAIN = """
UPDATE outstanding_batches SET room = NULL WHERE task_pk = :task_pk AND batch_id = :batch_id"""
_Q_LOOK_AGAIN_AT_ALL = """
UPDATE outstanding_batches SET room = NULL WHERE task_pk = :task_pk AND collection_pk IS NULL"""
_Q_IDS = """
SELECT batch_id FROM outstanding_batches WHERE task_pk = :task_pk AND collection_pk IS NULL"""
_Q_UNFINISHED = """
SELECT 1 FROM aggregation_jobs WHERE task_pk = :task_pk AND bucket = :batch_id
  AND state IN ('assigned', 'stored', 'polling', 'received') LIMIT 1"""
_Q_DROP = "DELETE FROM outstanding_batches WHERE task_pk = :task_pk AND batch_id = :batch_id"
_Q_DROP_ALL = """
DELETE FROM outstanding_batches WHERE batch_pk IN
  (SELECT batch_pk FROM outstanding_batches WHERE task_pk = :task_pk LIMIT :most)"""
_Q_INSERT = "INSERT INTO outstanding_batches (task_pk, batch_id) VALUES (:task_pk, :batch_id)"
_Q_BIND = """
UPDATE outstanding_batches SET collection_pk = :pk
WHERE task_pk = :task_pk AND batch_id = :batch_id AND collection_pk IS NULL"""
_Q_HAND_OVER = """
UPDATE outstanding_batches SET collection_pk = :new
WHERE task_pk = :task_pk AND batch_id = :batch_id AND collection_pk = :old"""


_PAGE = 64


@dataclass(frozen=True, slots=True)
class Roomy:
    """A batch and its ``room`` at the creator's last look; ``None`` if that may have changed."""

    batch: OpenBatch
    room: int | None


def open_batches(
    tx: Tx, task_pk: int, expired_before: int, until: int | None = None
) -> list[OpenBatch]:
    """Return the batches that no collection has taken, oldest first, except those with only expired
    reports (rule D6); at most up to the first that has ``until`` reports and no unfinished job.
    """
    found: list[OpenBatch] = []
    after = 0
    while True:
        rows = tx.all(
            _Q_OPEN, task_pk=task_pk, expired_before=expired_before, after=after, page=_PAGE
        )
        for row in rows:
            batch = _batch(row)
            found.append(batch)
            if until is not None and batch.aggregated >= until and not batch.unfinished:
                return found
        if len(rows) < _PAGE:
            return found
        after = rows[-1][0]


def roomy_batches(tx: Tx, task_pk: int, expired_before: int) -> list[Roomy]:
    """Return the batches that may take more reports, likewise: not those that were full when the
    creator looked at them, and of which no job has ended since.
    """
    rows = tx.all(_Q_ROOMY, task_pk=task_pk, expired_before=expired_before)
    return [Roomy(_batch(row), row[1]) for row in rows]


def _batch(row: Row) -> OpenBatch:
    _, _, batch_id, aggregated, in_flight, suspect = row
    return OpenBatch(batch_id, aggregated, in_flight, bool(suspect))


def note_room(tx: Tx, task_pk: int, batch_id: bytes, room: int) -> None:
    """Note how many more reports a batch can take until one of its jobs ends."""
    tx.execute(_Q_NOTE_ROOM, task_pk=task_pk, batch_id=batch_id, room=room)


def look_again(tx: Tx, task_pk: int, batch_id: bytes) -> None:
    """Let the creator look at a batch again: reports of an ended job may have left room (C6)."""
    tx.execute(_Q_LOOK_AGAIN, task_pk=task_pk, batch_id=batch_id)


def look_again_at_all(tx: Tx, task_pk: int) -> None:
    """Let the creator look at all batches of a task again: the target size may be another one."""
    tx.execute(_Q_LOOK_AGAIN_AT_ALL, task_pk=task_pk)


def unbound(tx: Tx, task_pk: int) -> list[bytes]:
    """Return the ids of the batches that no collection has taken, quarantined ones too."""
    return [row[0] for row in tx.all(_Q_IDS, task_pk=task_pk)]


def insert(tx: Tx, task_pk: int, batch_id: bytes) -> None:
    """Open a batch; its id is unique in the task (section "Leader-selected Batch Mode")."""
    tx.execute(_Q_INSERT, task_pk=task_pk, batch_id=batch_id)


def bind(tx: Tx, task_pk: int, batch_id: bytes, pk: int) -> bool:
    """Bind a batch to a collection job for ever (rule A8); return whether it was unbound."""
    return bool(tx.execute(_Q_BIND, task_pk=task_pk, batch_id=batch_id, pk=pk))


def hand_over(tx: Tx, task_pk: int, batch_id: bytes, old: int, new: int) -> None:
    """Bind the batch of a collection that was given up to the one that goes on with it (A8)."""
    tx.execute(_Q_HAND_OVER, task_pk=task_pk, batch_id=batch_id, old=old, new=new)


def has_unfinished_job(tx: Tx, task_pk: int, batch_id: bytes) -> bool:
    """Return whether an unfinished job may still add to the batch."""
    return tx.one(_Q_UNFINISHED, task_pk=task_pk, batch_id=batch_id) is not None


def drop(tx: Tx, task_pk: int, batch_id: bytes) -> None:
    """Delete a batch: it takes no more reports, and no collection can take it any more."""
    tx.execute(_Q_DROP, task_pk=task_pk, batch_id=batch_id)


def drop_all(tx: Tx, task_pk: int, most: int) -> int:
    """Delete up to ``most`` batches of a deleted task; return their number."""
    return tx.execute(_Q_DROP_ALL, task_pk=task_pk, most=most)
