"""Every query finds its rows by an index, however many reports, jobs and batches there are."""

from __future__ import annotations

import importlib
import pkgutil
import re
from collections.abc import Iterator
from pathlib import Path

import dapd.datastore
from dapd.datastore import chunks, leases, sealed
from dapd.datastore.migrate import migrate
from dapd.datastore.sqlite import connect

GROWING = (
    "report_chunks",
    "chunk",
    "chunk_rows",
    "aggregation_jobs",
    "job_bodies",
    "batch_shares",
    "collected",
    "collection_jobs",
    "aggregate_share_jobs",
    "outstanding_batches",
    "suspect_batches",
    "upload_groups",
)
"""The tables that grow while a daemon runs, and their aliases in queries."""


def queries() -> Iterator[tuple[str, str]]:
    """Every ``_Q_...`` of the table modules; those of leases once for each table and state, and
    those of each sealed column.
    """
    for column in sealed.COLUMNS:
        for label, text in (("sizes", column.sizes), ("page", column.page)):
            yield f"{column.name} {label}", text
    for module in pkgutil.iter_modules(dapd.datastore.__path__):
        found = vars(importlib.import_module(f"dapd.datastore.{module.name}"))
        for name, text in found.items():
            if not name.startswith("_Q_") or text.lstrip().startswith("CREATE"):
                continue
            label = f"{module.name}.{name}"
            if "{table}" not in text:
                yield label, text
                continue
            for kind in leases._TABLES:
                for which in ("computing", "exchanging"):
                    yield label, leases._sql(text, kind, which)


def test_no_query_scans_a_table_that_grows(tmp_path: Path) -> None:
    """If a partial index doesn't match its query, SQLite silently scans the table."""
    path = tmp_path / "dapd.sqlite"
    connection = connect(path)
    migrate(connection, path, 0)
    scans = []
    seen = 0
    for name, text in queries():
        seen += 1
        parameters = dict.fromkeys(re.findall(r":(\w+)", text))
        for row in connection.execute(f"EXPLAIN QUERY PLAN {text}", parameters):
            step = str(row[3])
            table = re.fullmatch(r"SCAN (\w+)", step)  # "... USING INDEX" reads what it wants
            if table and table[1] in GROWING:
                scans.append(f"{name}: {step}")
    connection.close()
    # Adding a task looks at its children only if a foreign key is violated, which none ever is.
    assert [scan for scan in scans if not scan.startswith("tasks._Q_INSERT")] == []
    assert seen > 50


def test_the_creator_looks_at_waiting_chunks_alone(tmp_path: Path) -> None:
    """Decided chunks stay until they expire, and there are far more of them."""
    path = tmp_path / "dapd.sqlite"
    connection = connect(path)
    migrate(connection, path, 0)
    for text in (chunks._Q_COLLECTED, chunks._Q_EXPIRED, chunks._Q_ASSIGNABLE, chunks._Q_READY):
        parameters = dict.fromkeys(re.findall(r":(\w+)", text))
        steps = [
            str(row[3]) for row in connection.execute(f"EXPLAIN QUERY PLAN {text}", parameters)
        ]
        first = next(step for step in steps if " report_chunks " in step or " chunk " in step)
        assert "USING INDEX report_chunks_waiting" in first
        assert not any("TEMP B-TREE" in step for step in steps)
    assert "SCAN outstanding_batches USING INDEX outstanding_roomy" in steps
    assert "SCAN collection_jobs USING INDEX collection_jobs_waiting" in steps
    connection.close()


def test_e1_the_dispatcher_steps_over_the_jobs_of_a_blocked_peer(tmp_path: Path) -> None:
    """It finds the peers, and then the due jobs of each other one, by an index of their own."""
    path = tmp_path / "dapd.sqlite"
    connection = connect(path)
    migrate(connection, path, 0)
    for kind, names in leases._TABLES.items():
        text = leases._sql(leases._Q_EXCHANGING, kind)
        parameters = dict.fromkeys(re.findall(r":(\w+)", text))
        steps = [
            str(row[3]) for row in connection.execute(f"EXPLAIN QUERY PLAN {text}", parameters)
        ]
        index = f"USING INDEX {names['table']}_of_peer"
        assert f"SEARCH {names['table']} {index}" in steps
        assert f"SEARCH {names['table']} {index} (peer>?)" in steps
        assert f"SEARCH job {index} (peer=? AND run_at<?)" in steps
    connection.close()
