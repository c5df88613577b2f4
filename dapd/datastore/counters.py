"""Per-task counters of reports by outcome, kept for ever."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from dapd.datastore.sqlite import Tx

_Q_ADD = """
INSERT INTO task_counters (task_pk, name, value) VALUES (:task_pk, :name, :value)
ON CONFLICT (task_pk, name) DO UPDATE SET value = task_counters.value + excluded.value"""
_Q_ALL = "SELECT name, value FROM task_counters WHERE task_pk = :task_pk ORDER BY name"

_Q_TOTALS = """
SELECT role, name, sum(value) FROM task_counters JOIN tasks USING (task_pk) GROUP BY role, name"""
_Q_BY_TASK = """
SELECT task_id,
  sum(CASE WHEN name = 'upload_accepted' THEN value ELSE 0 END),
  sum(CASE WHEN name LIKE 'upload%' AND name <> 'upload_accepted' THEN value ELSE 0 END),
  sum(CASE WHEN name = 'aggregate_finished' THEN value ELSE 0 END),
  sum(CASE WHEN name LIKE 'aggregate%' AND name <> 'aggregate_finished' THEN value ELSE 0 END)
FROM task_counters JOIN tasks USING (task_pk) WHERE state <> 'purged' GROUP BY task_pk"""


@dataclass(frozen=True, slots=True)
class TaskTotals:
    """The numbers of a task's reports: ``accepted`` and ``refused`` uploads, ``aggregated`` ones,
    and those ``left_out`` of the aggregate for any reason.
    """

    accepted: int = 0
    refused: int = 0
    aggregated: int = 0
    left_out: int = 0


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
    """Return all counters of a task by name."""
    return dict(tx.all(_Q_ALL, task_pk=task_pk))


def totals(tx: Tx) -> list[tuple[str, str, int]]:
    """Return (role, name, value), summed over all tasks, even deleted ones, so that none falls."""
    return [(role, name, value) for role, name, value in tx.all(_Q_TOTALS)]


def by_task(tx: Tx) -> dict[bytes, TaskTotals]:
    """Return the totals by task id, without purged tasks and those without any count."""
    return {task_id: TaskTotals(*sums) for task_id, *sums in tx.all(_Q_BY_TASK)}
