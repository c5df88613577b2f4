"""Per-task counters: how many reports had which outcome, for ever."""

from __future__ import annotations

from collections.abc import Mapping

from dapd.datastore.engines import Tx

_Q_ADD = """
INSERT INTO task_counters (task_pk, name, value) VALUES (:task_pk, :name, :value)
ON CONFLICT (task_pk, name) DO UPDATE SET value = task_counters.value + excluded.value"""
_Q_ALL = "SELECT name, value FROM task_counters WHERE task_pk = :task_pk ORDER BY name"

_Q_TOTALS = """
SELECT role, name, sum(value) FROM task_counters JOIN tasks USING (task_pk) GROUP BY role, name"""


def add(tx: Tx, task_pk: int, counts: Mapping[str, int]) -> None:
    """Raise each named counter: ``<interaction>_<outcome>``, such as ``upload_accepted``."""
    tx.many(
        _Q_ADD,
        [
            {"task_pk": task_pk, "name": name, "value": value}
            for name, value in counts.items()
            if value
        ],
    )


def of_task(tx: Tx, task_pk: int) -> dict[str, int]:
    """All counters of a task by name."""
    return dict(tx.all(_Q_ALL, task_pk=task_pk))


def totals(tx: Tx) -> list[tuple[str, str, int]]:
    """(role, name, value) over all tasks, the deleted ones too: none of them ever falls."""
    return [(role, name, value) for role, name, value in tx.all(_Q_TOTALS)]
