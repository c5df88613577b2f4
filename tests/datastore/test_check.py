"""``dapd datastore check`` finds no fault in dapd's own database, and each planted one."""

from __future__ import annotations

import shutil
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest
import trio

from dapd.datastore import open_for_command
from dapd.datastore.check import MOST, Finding, check
from dapd.datastore.invariants import INVARIANTS
from tests.clock import NOW
from tests.populated_database import populated_database

FAULTS = {
    "a task without secrets": ("tasks", "UPDATE tasks SET verify_key = x''"),
    "a task without a token": ("tasks", "UPDATE tasks SET aggregator_token = NULL"),
    "reports of another's task": ("report_chunks", "UPDATE tasks SET role = 'helper'"),
    "half a token hash": ("tasks", "UPDATE tasks SET inbound_token_hashes = x'00'"),
    "a mark below zero": ("tasks", "UPDATE tasks SET expired_before = -1"),
    "a configuration cut short": ("tasks", "UPDATE tasks SET configuration = x'0000'"),
    "a kept key without its half": (
        "hpke_keypairs",
        "UPDATE hpke_keypairs SET private_key = x'' WHERE state = 'active'",
    ),
    "an id too few": (
        "report_chunks",
        "UPDATE report_chunks SET ids = substr(ids, 17) WHERE state = 'decided'",
    ),
    "times of another bucket": (
        "report_chunks",
        "UPDATE report_chunks SET time_min = time_min + 1, time_max = time_max + 1",
    ),
    "rows lost": ("report_chunks", "DELETE FROM chunk_rows"),
    "rows left over": (
        "chunk_rows",
        "UPDATE report_chunks SET state = 'decided' WHERE state = 'waiting'",
    ),
    "rows of no chunk": (
        "chunk_rows",
        "INSERT INTO chunk_rows SELECT 999, lengths, rows FROM chunk_rows LIMIT 1",
    ),
    "rows cut short": ("chunk_rows.rows", "UPDATE chunk_rows SET rows = substr(rows, 2)"),
    "lengths of other rows": ("chunk_rows.rows", "UPDATE chunk_rows SET lengths = x'01000000'"),
    "waiting, and in a job": (
        "report_chunks",
        "UPDATE report_chunks SET job_pk = 1 WHERE state = 'waiting'",
    ),
    "assigned to an ended job": (
        "report_chunks",
        "UPDATE report_chunks SET job_pk = 1 WHERE state = 'assigned'",
    ),
    "in a job of a closed batch": (
        "report_chunks",
        (
            "INSERT INTO collected (task_pk, lo, hi, state) "
            "SELECT task_pk, bucket, CAST(bucket || x'00' AS BLOB), 'collected' FROM report_chunks "
            "WHERE state = 'assigned'"
        ),
    ),
    "a state of no role": ("aggregation_jobs", "UPDATE aggregation_jobs SET state = 'received'"),
    "a role that is not the task's": (
        "aggregation_jobs",
        "UPDATE aggregation_jobs SET role = 'helper', state = 'deleted' WHERE state = 'finished'",
    ),
    "a job for another Helper": (
        "aggregation_jobs",
        "UPDATE aggregation_jobs SET peer = 'another' WHERE state = 'stored'",
    ),
    "a collection for another Helper": (
        "collection_jobs",
        "UPDATE collection_jobs SET peer = 'another' WHERE state IN ('waiting', 'frozen')",
    ),
    "a report more than its chunks have": (
        "aggregation_jobs",
        "UPDATE aggregation_jobs SET n = n + 1 WHERE state = 'stored'",
    ),
    "another expiry than its reports have": (
        "aggregation_jobs",
        "UPDATE aggregation_jobs SET newest = newest + 1 WHERE state = 'stored'",
    ),
    "no request to send": ("aggregation_jobs", "UPDATE job_bodies SET request = NULL"),
    "no state to finish with": ("aggregation_jobs", "DELETE FROM job_bodies"),
    "bodies of an ended job": (
        "job_bodies",
        "INSERT INTO job_bodies SELECT 1, request, leader_state, response FROM job_bodies",
    ),
    "bodies of no job": (
        "job_bodies",
        "INSERT INTO job_bodies SELECT 999, request, leader_state, response FROM job_bodies",
    ),
    "an ended job that is leased": (
        "aggregation_jobs",
        "UPDATE aggregation_jobs SET lease_token = x'00', lease_until = 1 WHERE state = 'finished'",
    ),
    "half a lease": ("collection_jobs", "UPDATE collection_jobs SET lease_until = 1"),
    "half an admitted id": (
        "aggregation_jobs",
        "UPDATE aggregation_jobs SET admitted_ids = x'00' WHERE state = 'finished'",
    ),
    "an empty contribution": ("batch_shares", "UPDATE batch_shares SET n = 0"),
    "a contribution from elsewhere": (
        "batch_shares",
        "UPDATE batch_shares SET time_max = time_max + 1",
    ),
    "a contribution above its job": ("batch_shares", "UPDATE batch_shares SET n = 1000"),
    "a contribution of an unfinished job": (
        "batch_shares",
        (
            "UPDATE batch_shares SET job_id = "
            "(SELECT id FROM aggregation_jobs WHERE state = 'stored') WHERE share_pk = 1"
        ),
    ),
    "more in batches than was aggregated": (
        "batch_shares",
        "UPDATE task_counters SET value = 1 WHERE name = 'aggregate_finished'",
    ),
    "a report that nothing became of": (
        "task_counters",
        "UPDATE task_counters SET value = value + 1 WHERE name = 'upload_accepted'",
    ),
    "a counter below zero": ("task_counters", "UPDATE task_counters SET value = -1"),
    "ranges that overlap": (
        "collected",
        (
            "INSERT INTO collected (task_pk, lo, hi, state) "
            "SELECT task_pk, lo, CAST(hi || x'00' AS BLOB), 'collected' FROM collected"
        ),
    ),
    "an empty range": ("collected", "UPDATE collected SET lo = hi"),
    "a range closed for nobody": ("collected", "UPDATE collected SET collection_pk = NULL"),
    "a range kept for a query without its request": (
        "collected",
        "UPDATE collected SET state = 'given_up'",
    ),
    "something suspect that is no batch": (
        "suspect_batches",
        "INSERT INTO suspect_batches (task_pk, bucket) VALUES (1, x'00')",
    ),
    "a frozen batch that is open": ("collection_jobs", "DELETE FROM collected"),
    "a frozen batch without its share": (
        "collection_jobs",
        "UPDATE collection_jobs SET leader_share = NULL",
    ),
    "a result that is not there": (
        "collection_jobs",
        "UPDATE collection_jobs SET state = 'finished', leader_share = NULL",
    ),
    "an ended collection with its share": (
        "collection_jobs",
        "UPDATE collection_jobs SET state = 'failed', error = 'x'",
    ),
    "a share that was not served": (
        "aggregate_share_jobs",
        "INSERT INTO aggregate_share_jobs (id, task_pk, created_at) VALUES (x'00', 1, 1)",
    ),
    "a batch bound to another's collection": (
        "outstanding_batches",
        (
            "INSERT INTO outstanding_batches (task_pk, batch_id, collection_pk) "
            "VALUES (1, zeroblob(32), 1)"
        ),
    ),
    "a row of no task": (
        "outstanding_batches",
        "INSERT INTO outstanding_batches (task_pk, batch_id) VALUES (77, zeroblob(32))",
    ),
    "a report admitted twice": (
        "report_chunks",
        (
            "UPDATE report_chunks SET ids = (SELECT substr(ids, 1, 16) FROM report_chunks "
            "WHERE state = 'decided' LIMIT 1) WHERE state = 'waiting'"
        ),
    ),
    "a key that the database does not list": (
        "batch_shares.share",
        (
            "UPDATE batch_shares SET share = "
            "CAST(substr(share, 1, 1) || x'eeeeeeeeeeeeeeee' || substr(share, 10) AS BLOB)"
        ),
    ),
    "something that is not sealed": (
        "hpke_keypairs.private_key",
        "UPDATE hpke_keypairs SET private_key = zeroblob(32)",
    ),
}


@pytest.fixture(scope="module")
def full(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the database of a Leader with jobs and collections in every state."""
    directory = tmp_path_factory.mktemp("full")

    async def make() -> None:
        async with populated_database(directory / "pair") as populated:
            shutil.copy(populated.database, directory / "full.sqlite")

    trio.run(make)
    return directory / "full.sqlite"


@pytest.fixture
def database(full: Path, tmp_path: Path) -> Path:
    """Return a copy that a test may damage."""
    return Path(shutil.copy(full, tmp_path / "dapd.sqlite"))


def plant(database: Path, sql: str) -> None:
    """Damage the database, with foreign keys disabled."""
    with closing(sqlite3.connect(database, isolation_level=None)) as connection:
        connection.execute(sql)
        assert connection.total_changes > 0


def look(database: Path) -> list[Finding]:
    """Return the command's findings."""
    opened = open_for_command(database, holder="a test", now=NOW)
    try:
        return opened.datastore.read_sync(check)
    finally:
        opened.close()


def test_a_database_in_the_middle_of_everything_is_whole(database: Path) -> None:
    """None of its states is a finding."""
    assert look(database) == []


@pytest.mark.parametrize("fault", FAULTS)
def test_a_planted_fault_is_found(database: Path, fault: str) -> None:
    """A finding names the table and row, the problem and the remedy."""
    table, sql = FAULTS[fault]
    plant(database, sql)
    found = [finding for finding in look(database) if finding.table == table]
    assert found, look(database)
    assert all(finding.key and finding.problem and finding.remedy for finding in found)


def test_every_rule_finds_something(full: Path, tmp_path: Path) -> None:
    """An invariant that no fault violates may check nothing."""
    problems = set()
    for number, (_, sql) in enumerate(FAULTS.values()):
        database = Path(shutil.copy(full, tmp_path / f"{number}.sqlite"))
        plant(database, sql)
        problems |= {finding.problem for finding in look(database)}
    assert [each.problem for each in INVARIANTS if each.problem not in problems] == []


def test_a_damaged_file_is_said_to_be_and_not_looked_into(database: Path) -> None:
    """SQLite's own check comes first."""
    with closing(sqlite3.connect(database)) as connection:
        (size,) = connection.execute("PRAGMA page_size").fetchone()
        (page,) = connection.execute(
            "SELECT rootpage FROM sqlite_master WHERE name = 'batch_shares_counted'"
        ).fetchone()
    whole = database.read_bytes()
    middle = size * page - size // 2
    database.write_bytes(whole[:middle] + bytes(size // 2) + whole[size * page :])
    found = look(database)
    assert found
    assert all(finding.problem.startswith("SQLite: ") for finding in found)


def test_no_more_of_a_kind_than_someone_reads(database: Path) -> None:
    """A thousand broken rows are twenty findings."""
    plant(
        database,
        "WITH RECURSIVE n (i) AS (VALUES (1) UNION ALL SELECT i + 1 FROM n WHERE i < 1000) "
        "INSERT INTO task_counters SELECT 1, 'lost_' || i, -1 FROM n",
    )
    assert len(look(database)) == MOST
