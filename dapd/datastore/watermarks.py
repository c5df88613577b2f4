"""A task's watermarks, the times below which its reports are refused; they never fall (rule D6).

The garbage collector deletes below ``expired_before``. Below ``quarantined_before``, a restored
file may have forgotten reports that were admitted.
"""

from __future__ import annotations

from dapd.datastore.sqlite import Tx
from dapd.protocol.task import Instant, Task

_Q_MARKS = "SELECT expired_before, quarantined_before FROM tasks WHERE task_pk = :task_pk"
_Q_QUARANTINE = """
UPDATE tasks SET quarantined_before = :before
WHERE task_pk = :task_pk AND quarantined_before < :before"""
_Q_NOTE_RESTORE = """
INSERT INTO restores (forgotten_before) VALUES (:before) ON CONFLICT DO NOTHING"""
_Q_LAST_RESTORE = "SELECT max(forgotten_before) FROM restores"
_Q_RAISE = """
UPDATE tasks SET expired_before = :expired_before
WHERE task_pk = :task_pk AND expired_before < :expired_before"""


def raise_expired_before(tx: Tx, task_pk: int, expired_before: int) -> bool:
    """Raise ``expired_before``, which never falls (rule D6); return whether it was lower."""
    return bool(tx.execute(_Q_RAISE, task_pk=task_pk, expired_before=expired_before))


def expired_before(tx: Tx, task: Task, at: Instant) -> int:
    """Return the time from which on this transaction may read and serve reports (rule D6).

    It includes the stored watermark, which may have risen since ``task`` was loaded, so nothing at
    or above it has been deleted.
    """
    row = tx.one(_Q_MARKS, task_pk=task.task_pk)
    return max(task.expired_before_at(at), row[0] if row else 0)


def expiring_before(tx: Tx, task: Task, at: Instant) -> int:
    """Return the time from which on a batch lives long enough for another job (rule C6)."""
    return max(task.expiring_before_at(at), expired_before(tx, task, at))


def refused_before(tx: Tx, task_pk: int) -> int:
    """Return the stored time below which this transaction must not admit reports (rule D6).

    It may have risen since the reports were verified.
    """
    row = tx.one(_Q_MARKS, task_pk=task_pk)
    return max(row) if row else 0


def quarantine(tx: Tx, task_pk: int, before: int) -> None:
    """Raise ``quarantined_before``, which never falls."""
    tx.execute(_Q_QUARANTINE, task_pk=task_pk, before=before)


def note_restore(tx: Tx, forgotten_before: int) -> None:
    """Note that reports up to this time (ms) may be forgotten, also those of tasks added later."""
    tx.execute(_Q_NOTE_RESTORE, before=forgotten_before)


def last_restore(tx: Tx) -> int | None:
    """Return the time of the latest ``note_restore``; ``None`` if the file was never restored."""
    row = tx.one(_Q_LAST_RESTORE)
    return row[0] if row else None
