"""A read-only snapshot sees all commits and changes nothing."""

from __future__ import annotations

import sqlite3
from pathlib import Path

import pytest

from dapd.datastore import keys
from dapd.datastore.migrate import migrations
from dapd.datastore.read_only import snapshot
from dapd.errors import DatastoreError, UnfitDatastore
from tests.contexts import add_task, open_store
from tests.task_pair import task_pair


def config_ids(path: Path) -> list[int]:
    with snapshot(path) as (tx, is_current):
        assert is_current
        return [key.config_id for key in keys.all_keys(tx)]


def test_commits_are_seen_beside_their_writer_and_after_it(tmp_path: Path) -> None:
    """In the WAL while a daemon has the file, in the file once that is closed; then nothing is made
    beside it.
    """
    path, pair = tmp_path / "dapd.sqlite", task_pair()
    opened = open_store(path)
    assert config_ids(path) == []
    add_task(opened.datastore, pair.leader, pair)
    assert config_ids(path) == [pair.leader_key.config[0]]
    opened.close()
    before = {each: each.read_bytes() for each in tmp_path.iterdir()}
    assert config_ids(path) == [pair.leader_key.config[0]]
    assert {each: each.read_bytes() for each in tmp_path.iterdir()} == before


def test_nothing_can_be_written(tmp_path: Path) -> None:
    """Neither with a daemon nor without one."""
    path = tmp_path / "dapd.sqlite"
    opened = open_store(path)
    with pytest.raises(DatastoreError, match="read-only"), snapshot(path) as (tx, _):
        tx.execute("DELETE FROM tasks")
    opened.close()
    with pytest.raises(DatastoreError, match="read-only"), snapshot(path) as (tx, _):
        tx.execute("DELETE FROM tasks")


def test_an_older_schema_is_only_told(tmp_path: Path) -> None:
    """An older schema may have other tables."""
    path = tmp_path / "dapd.sqlite"
    open_store(path).close()
    database = sqlite3.connect(path)
    with database:
        newest = migrations()[-1].version
        database.execute("DELETE FROM schema_migrations WHERE version = ?", (newest,))
    database.close()
    with snapshot(path) as (_, is_current):
        assert not is_current


def test_a_file_of_another_program_is_refused(tmp_path: Path) -> None:
    """So is a file that is not an SQLite database."""
    path = tmp_path / "dapd.sqlite"
    database = sqlite3.connect(path)
    database.execute("CREATE TABLE theirs (x)")
    database.close()
    with pytest.raises(UnfitDatastore, match="not a dapd database"), snapshot(path):
        pass
    path.write_bytes(b"no database" * 100)
    with pytest.raises(DatastoreError, match="restore a backup"), snapshot(path):
        pass
