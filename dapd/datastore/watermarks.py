"""The marks below which a task's reports are refused; they never fall (rule D6).

``expired_before`` is the watermark, below which the garbage collector deletes; what lies below
``quarantined_before`` may have been admitted and forgotten, by a file that was restored.
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
    """Raise the watermark, which never falls (rule D6); whether that made a difference."""
    return bool(tx.execute(_Q_RAISE, task_pk=task_pk, expired_before=expired_before))


def expired_before(tx: Tx, task: Task, at: Instant) -> int:
    """The bound for what may still be read and asked for, as a transaction must take it: whatever
    ``task`` knew when the work began, nothing at or above this has been deleted (rule D6).
    """
    row = tx.one(_Q_MARKS, task_pk=task.task_pk)
    return max(task.expired_before_at(at), row[0] if row else 0)


def refused_before(tx: Tx, task_pk: int) -> int:
    """Reports below this are dropped, as far as it is stored: what a transaction must not admit,
    whatever the mark was when its reports were verified (rule D6).
    """
    row = tx.one(_Q_MARKS, task_pk=task_pk)
    return max(row) if row else 0


def quarantine(tx: Tx, task_pk: int, before: int) -> None:
    """Reports below this may have been admitted and forgotten; the mark never falls."""
    tx.execute(_Q_QUARANTINE, task_pk=task_pk, before=before)


def note_restore(tx: Tx, forgotten_before: int) -> None:
    """Reports up to this moment (ms) may be forgotten, also those of tasks added later."""
    tx.execute(_Q_NOTE_RESTORE, before=forgotten_before)


def last_restore(tx: Tx) -> int | None:
    """What the latest ``note_restore`` said; ``None`` if the file was never restored."""
    row = tx.one(_Q_LAST_RESTORE)
    return row[0] if row else None
