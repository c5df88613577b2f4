"""Does the file hold together? SQLite's own integrity, then what must hold between dapd's rows.

Read-only, in one snapshot, beside a running daemon or without one; large columns are read in pages.
``dapd.datastore.invariants`` has what SQL can say of each row, this module the rest. Left out:
whether sealed values open, which needs the keys (``dapd.datastore.sealed.open_every_value``).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from dapd.datastore import sealed
from dapd.datastore.invariants import REPORT, RESTORE, RULES, Rule
from dapd.datastore.replay import id_pages
from dapd.datastore.sqlite import Tx
from dapd.messages.task import TaskConfiguration
from dapd.reports import ReplayIndex

MOST = 20
"""Findings of one kind."""
_KEYS = "see `dapd datastore keys`; add the key's file to [datastore] sealing_keys"


@dataclass(frozen=True, slots=True)
class Finding:
    """Something that must not be: ``key`` names the row in ``table``, empty for the file itself."""

    table: str
    key: str
    problem: str
    remedy: str


def check(tx: Tx) -> list[Finding]:
    """All that is wrong, at most ``MOST`` of a kind. A damaged file is not looked into further."""
    damaged = list(_integrity(tx))
    if damaged:
        return damaged
    found = [finding for rule in RULES for finding in _broken(tx, rule)]
    for looked in (_configurations(tx), _sealed(tx), _replayed(tx)):
        found += _first(looked)
    return found


def _integrity(tx: Tx) -> Iterator[Finding]:
    for (message,) in tx.all(f"PRAGMA integrity_check({MOST})"):
        if message != "ok":
            yield Finding("", "", f"SQLite: {message}", RESTORE)
    for table, row, parent, _ in tx.all("PRAGMA foreign_key_check"):
        yield Finding(table, str(row), f"its row in {parent} is missing", RESTORE)


def _broken(tx: Tx, rule: Rule) -> list[Finding]:
    rows = tx.all(f"SELECT * FROM ({rule.offenders}) LIMIT {MOST}")  # noqa: S608 - constants alone
    return [Finding(rule.table, str(key), rule.problem, rule.remedy) for (key,) in rows]


def _configurations(tx: Tx) -> Iterator[Finding]:
    for task_pk, configuration in tx.all("SELECT task_pk, configuration FROM tasks"):
        try:
            TaskConfiguration.decode(configuration)
        except ValueError as error:
            problem = f"its TaskConfiguration does not parse: {error}"
            yield Finding("tasks", str(task_pk), problem, RESTORE)


def _sealed(tx: Tx) -> Iterator[Finding]:
    """Sealed values that no key opens, and reports whose columns do not fit together."""
    known = set(sealed.sealing_key_ids(tx))
    for column in sealed.COLUMNS:
        for cell in sealed.cells(tx, column):
            try:
                unknown = column.key_ids(cell).keys() - known
            except ValueError as error:
                yield Finding(column.name, str(cell.pk), str(error), RESTORE)
                continue
            for key_id in sorted(unknown):
                problem = f"it is sealed with key {key_id.hex()}, which the database does not list"
                yield Finding(column.name, str(cell.pk), problem, _KEYS)


def _replayed(tx: Tx) -> Iterator[Finding]:
    """Rows with a report id that an earlier one of the same task has too (I1)."""
    index = ReplayIndex()
    for table, page in id_pages(tx):
        for pk, task_pk, ids in page:
            if again := index.admit(task_pk, ids[: len(ids) // 16 * 16]).count(1):
                problem = f"{again} of its report ids are admitted twice"
                yield Finding(table, str(pk), problem, REPORT)
        index.commit()


def _first(findings: Iterator[Finding]) -> list[Finding]:
    return [finding for finding, _ in zip(findings, range(MOST), strict=False)]
