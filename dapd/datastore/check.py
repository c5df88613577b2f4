"""Check a database: SQLite's own integrity, then dapd's invariants.

This only reads, in one snapshot, with or without a running daemon, and reads large columns in
pages. ``dapd.datastore.invariants`` contains the checks that SQL can express, this module the
others. Whether sealed values open is not checked here, because that needs the keys
(``dapd.datastore.sealed.open_every_value``).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from dapd.datastore import sealed
from dapd.datastore.invariants import INVARIANTS, REPORT, RESTORE, Invariant
from dapd.datastore.replay import id_pages
from dapd.datastore.sqlite import Tx
from dapd.messages.task import TaskConfiguration
from dapd.reports import ReplayIndex

MOST = 20
"""The most findings of one kind."""
_KEYS = "see `dapd datastore keys`; add the key's file to [datastore] sealing_keys"


@dataclass(frozen=True, slots=True)
class Finding:
    """A fault: ``key`` names the row in ``table``; both are empty for the file itself."""

    table: str
    key: str
    problem: str
    remedy: str


def check(tx: Tx) -> list[Finding]:
    """Return all faults, at most ``MOST`` of a kind. In a damaged file, look no further."""
    damaged = list(_integrity(tx))
    if damaged:
        return damaged
    found = [finding for invariant in INVARIANTS for finding in _violations(tx, invariant)]
    for looked in (_configurations(tx), _sealed(tx), _replayed(tx)):
        found += _first(looked)
    return found


def _integrity(tx: Tx) -> Iterator[Finding]:
    for (message,) in tx.all(f"PRAGMA integrity_check({MOST})"):
        if message != "ok":
            yield Finding("", "", f"SQLite: {message}", RESTORE)
    for table, row, parent, _ in tx.all("PRAGMA foreign_key_check"):
        yield Finding(table, str(row), f"its row in {parent} is missing", RESTORE)


def _violations(tx: Tx, invariant: Invariant) -> list[Finding]:
    query = f"SELECT * FROM ({invariant.violations}) LIMIT {MOST}"  # noqa: S608 - constants alone
    table, problem, remedy = invariant.table, invariant.problem, invariant.remedy
    return [Finding(table, str(key), problem, remedy) for (key,) in tx.all(query)]


def _configurations(tx: Tx) -> Iterator[Finding]:
    for task_pk, configuration in tx.all("SELECT task_pk, configuration FROM tasks"):
        try:
            TaskConfiguration.decode(configuration)
        except ValueError as error:
            problem = f"its TaskConfiguration does not parse: {error}"
            yield Finding("tasks", str(task_pk), problem, RESTORE)


def _sealed(tx: Tx) -> Iterator[Finding]:
    """Yield sealed values of unlisted keys, and chunks whose columns do not fit together."""
    known = set(sealed.sealing_key_ids(tx))
    for column in sealed.COLUMNS:
        for cell in sealed.cells(tx, column):
            try:
                unknown = column.key_ids(cell).keys() - known
            except ValueError as error:
                yield Finding(column.name, str(cell.pk), str(error), RESTORE)
                continue
            for key_id in sorted(unknown):
                problem = f"sealed with key {key_id.hex()}, which the database does not list"
                yield Finding(column.name, str(cell.pk), problem, _KEYS)


def _replayed(tx: Tx) -> Iterator[Finding]:
    """Yield rows with a report id that an earlier row of the same task has too (I1)."""
    index = ReplayIndex()
    for table, page in id_pages(tx):
        for pk, task_pk, ids in page:
            if again := index.admit(task_pk, ids[: len(ids) // 16 * 16]).count(1):
                problem = f"report ids that were admitted before: {again}"
                yield Finding(table, str(pk), problem, REPORT)
        index.commit()


def _first(findings: Iterator[Finding]) -> list[Finding]:
    return [finding for finding, _ in zip(findings, range(MOST), strict=False)]
