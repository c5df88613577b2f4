"""A backup replaces the database completely and prepared, or not at all."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from dapd.commits.sealing_keys import check_sealing_keys
from dapd.crypto import make_sealer, sealing_key_id
from dapd.datastore import Datastore, Tx, open_for_daemon
from dapd.datastore.opening import Opened
from dapd.datastore.replace import Restored, replace_database
from dapd.datastore.verify import Verified, verify
from dapd.errors import DatastoreError
from tests.clock import NOW
from tests.contexts import add_task, open_store
from tests.task_pair import SEALING_KEY, task_pair

KEY_IDS = [sealing_key_id(SEALING_KEY)]


def make(path: Path, count: int) -> None:
    """Make a database with this number of tasks."""
    opened = open_store(path)
    opened.datastore.run_sync(check_sealing_keys, KEY_IDS)
    for _ in range(count):
        pair = task_pair()
        opened.datastore.run_sync(_clear_keys)
        add_task(opened.datastore, pair.helper, pair)
    opened.close()


def _clear_keys(tx: Tx) -> None:
    tx.execute("DELETE FROM hpke_keypairs")


def count(opened: Opened | Datastore) -> int:
    datastore = opened.datastore if isinstance(opened, Opened) else opened
    return datastore.read_sync(lambda tx: len(tx.all("SELECT 1 FROM tasks")))


def restore(path: Path, source: Path) -> Restored[int]:
    return replace_database(path, source, holder="a test", now=NOW, check=verified, prepare=count)


def verified(copy: Path) -> Verified:
    return verify(copy, make_sealer([SEALING_KEY]), KEY_IDS)


@pytest.fixture
def database(tmp_path: Path) -> Path:
    """A database with two tasks; beside it is ``backup``, with one."""
    make(tmp_path / "dapd.sqlite", 2)
    make(tmp_path / "backup", 1)
    return tmp_path / "dapd.sqlite"


def test_the_copy_takes_the_place_and_what_was_there_is_kept(database: Path) -> None:
    """Only this user can read it, and a start finds it neither behind nor locked."""
    done = restore(database, database.with_name("backup"))
    assert done.prepared == 1
    assert done.kept is not None
    assert database.stat().st_mode & 0o777 == 0o600
    assert not database.with_name("dapd.sqlite.restoring").exists()
    for path, tasks in ((database, 1), (done.kept, 2)):
        opened = open_store(path)
        assert (count(opened), opened.behind) == (tasks, False)
        opened.close()


def test_a_backup_is_restored_where_nothing_was(database: Path, tmp_path: Path) -> None:
    """A restore on a new machine needs no old database."""
    path = tmp_path / "new.sqlite"
    assert restore(path, database) == Restored(2, None)
    opened = open_store(path)
    assert count(opened) == 2
    opened.close()


def test_the_databases_own_file_can_be_restored(database: Path) -> None:
    """A database can be restored from itself, after a machine was reset to a snapshot."""
    done = restore(database, database)
    assert done.prepared == 2
    assert done.kept is not None


def test_a_damaged_database_is_kept_as_it_is(database: Path) -> None:
    """A damaged database, which can't be opened, is kept with its WAL."""
    database.write_bytes(b"no database at all" * 100)
    wal = database.with_name("dapd.sqlite-wal")
    wal.write_bytes(b"its wal")
    done = restore(database, database.with_name("backup"))
    assert done.kept is not None
    assert done.kept.read_bytes().startswith(b"no database")
    assert done.kept.with_name(done.kept.name + "-wal").read_bytes() == b"its wal"
    opened = open_store(database)
    assert count(opened) == 1
    opened.close()


def damaged(source: Path) -> None:
    source.write_bytes(source.read_bytes()[:5000])


def another_program(source: Path) -> None:
    source.unlink()
    with closing(sqlite3.connect(source)) as connection:
        connection.execute("CREATE TABLE notes (text)")


def gone(source: Path) -> None:
    source.unlink()


@pytest.mark.parametrize("spoil", [damaged, another_program, gone])
def test_a_bad_backup_changes_nothing(database: Path, spoil: object) -> None:
    """The old database is still in place, and no other file is left."""
    assert callable(spoil)
    spoil(database.with_name("backup"))
    before = sorted(database.parent.iterdir())
    with pytest.raises(DatastoreError):
        restore(database, database.with_name("backup"))
    assert sorted(database.parent.iterdir()) == before
    opened = open_store(database)
    assert (count(opened), opened.behind) == (2, False)
    opened.close()


def test_a_copy_that_can_not_be_prepared_changes_nothing(database: Path) -> None:
    """If preparing fails, for example for a missing key, the backup is not installed."""

    def refuse(datastore: Datastore) -> None:
        raise DatastoreError("a value does not open")

    with pytest.raises(DatastoreError, match="does not open"):
        replace_database(
            database,
            database.with_name("backup"),
            holder="a test",
            now=NOW,
            check=verified,
            prepare=refuse,
        )
    opened = open_store(database)
    assert count(opened) == 2
    opened.close()


def test_e5_a_database_in_use_is_not_replaced(database: Path) -> None:
    """The error names the holder."""
    opened = open_for_daemon(database, holder="dapd, process 7", now=NOW, on_lost=pytest.fail)
    with pytest.raises(DatastoreError, match="held by dapd, process 7"):
        restore(database, database.with_name("backup"))
    opened.close()
