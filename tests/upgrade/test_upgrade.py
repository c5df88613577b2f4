"""A database of every released schema: this version upgrades it, and goes on where it stopped."""

from __future__ import annotations

import random
from contextlib import closing
from pathlib import Path

import pytest

from dapd.collector import Query
from dapd.crypto import make_sealer, sealing_key_id
from dapd.datastore.backup import connect_read_only
from dapd.datastore.migrate import migrations
from dapd.datastore.verify import verify
from dapd.reports import ReportError, split_ids
from tests.clock import TIME
from tests.contexts import open_store
from tests.pair_harness import query_at, running_clock
from tests.task_pair import make_ids
from tests.upgrade import old_databases

SCHEMAS = sorted(old_databases.HERE.glob("schema-*"))
VERSIONS = [int(schema.name.partition("-")[2]) for schema in SCHEMAS]
schemas = pytest.mark.parametrize("schema", SCHEMAS, ids=lambda schema: schema.name)
DAY = 86_400


def test_every_schema_has_its_database() -> None:
    """A migration comes with ``python -m tests.upgrade.make``."""
    assert [migration.version for migration in migrations()] == VERSIONS


@schemas
def test_a_database_is_small(schema: Path) -> None:
    """There will be many."""
    assert sum(file.stat().st_size for file in schema.rglob("*.*")) < 200_000


@schemas
def test_an_upgraded_database_is_built_like_a_new_one(schema: Path, tmp_path: Path) -> None:
    """Also the newest one, which is to be made again when its unreleased schema is edited."""
    old_databases.unpack(schema, tmp_path)
    open_store(tmp_path / "new.sqlite").close()
    for role in old_databases.ROLES:
        open_store(tmp_path / role / "dapd.sqlite").close()
        assert built(tmp_path / role / "dapd.sqlite") == built(tmp_path / "new.sqlite")


def built(path: Path) -> dict[str, set[tuple[object, ...]]]:
    """The columns of each table, in any order, and how each index is made."""
    with closing(connect_read_only(path)) as connection:
        names = connection.execute("SELECT name, type, sql FROM sqlite_master").fetchall()
        return {
            name: {(" ".join(sql.split()),)}
            if kind == "index" and sql
            else {row[1:] for row in connection.execute(f"PRAGMA table_xinfo({name})")}
            for name, kind, sql in names
        }


@schemas
def test_it_is_upgraded_and_whole(schema: Path, tmp_path: Path) -> None:
    """What is missing is applied, with a copy beside it, and everything sealed opens."""
    old_databases.unpack(schema, tmp_path)
    older = int(schema.name.partition("-")[2]) < VERSIONS[-1]
    for role in old_databases.ROLES:
        path = tmp_path / role / "dapd.sqlite"
        opened = open_store(path)
        assert bool(opened.migrated) == bool(opened.copied_to) == older
        assert not opened.behind
        opened.close()
        sealer = make_sealer([old_databases.SEALING_KEY])
        found = verify(path, sealer, [sealing_key_id(old_databases.SEALING_KEY)])
        assert (found.schema, found.rows["tasks"]) == (VERSIONS[-1], 2)
        assert found.opened["tasks.verify_key"] == 2
        if role == "leader":
            waiting = len(old_databases.IN_A_JOB) + 2 * len(old_databases.WAITING)
            assert found.opened["chunk_rows.rows"] == waiting


@schemas
async def test_a_pair_goes_on_where_it_stopped(schema: Path, tmp_path: Path) -> None:
    """What was collected stays so, what waited is collected, and nothing counts twice."""
    old_databases.unpack(schema, tmp_path)
    clock = running_clock()
    clock.advance(DAY)
    async with old_databases.pair_of(tmp_path, clock) as (pair, http):
        timed = old_databases.harness(schema, "time-interval", pair, http)
        selected = old_databases.harness(schema, "leader-selected", pair, http)
        for label, measurements, at in (
            ("collected", old_databases.COLLECTED, TIME - 1),
            ("in a job", old_databases.IN_A_JOB, TIME),
            ("waiting", old_databases.WAITING, TIME),
        ):
            again = await timed.upload(timed.seal(measurements, label, at=at))
            ids = split_ids(make_ids(len(measurements), label))
            assert again == [(each, ReportError.REPORT_REPLAYED) for each in ids]

        result = await timed.task.collect(old_databases.BEFORE_TIME)
        assert (result.report_count, result.value) == (
            len(old_databases.COLLECTED),
            sum(old_databases.COLLECTED),
        )
        new = random.Random(schema.name).choices([0, 1], k=9)
        assert await timed.upload(timed.seal(new, "new")) == []
        of_this_time = [*old_databases.IN_A_JOB, *old_databases.WAITING, *new]
        result = await timed.task.collect(query_at())
        assert (result.report_count, result.value) == (len(of_this_time), sum(of_this_time))
        result = await selected.task.collect(Query.next_batch())
        assert (result.report_count, result.value) == (
            len(old_databases.WAITING),
            sum(old_databases.WAITING),
        )
