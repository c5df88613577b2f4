"""Transactions on SQLite are atomic, with the replay index; one daemon owns a file."""

from __future__ import annotations

import os
import sqlite3
import threading
from pathlib import Path

import pytest
import trio

from dapd.datastore import Datastore, Tx, open_for_command, open_for_daemon
from dapd.datastore.sqlite import COMMITS_BETWEEN_WAL_LOOKS, WAL_LIMIT_BYTES, Pages
from dapd.errors import DatastoreError

IDS = bytes(range(32))
_ADD = "INSERT INTO sealing_keys (key_id) VALUES (:key_id)"
_COUNT = "SELECT count(*) FROM sealing_keys"


def refuse_to_end(message: str) -> None:
    raise AssertionError(message)


def open_new(directory: Path) -> Datastore:
    return open_for_daemon(
        directory / "dapd.sqlite", holder="a test", now=0, on_lost=refuse_to_end
    ).datastore


def add_then_fail(tx: Tx) -> None:
    tx.execute(_ADD, key_id=b"x")
    assert tx.replay.admit(1, IDS) == b"\0\0"
    raise LookupError("after the writes")


def count(tx: Tx) -> int:
    row = tx.one(_COUNT)
    assert row is not None
    return int(row[0])


async def test_d3_a_failed_transaction_leaves_neither_rows_nor_ids(tmp_path: Path) -> None:
    """The index rolls back with the transaction, for any error."""
    datastore = open_new(tmp_path)
    with pytest.raises(LookupError):
        await datastore.run(add_then_fail)
    assert await datastore.read(count) == 0
    assert datastore.replay.peek(1, IDS) == b"\0\0"
    assert len(datastore.replay) == 0


async def test_d3_the_index_is_undone_even_if_the_statement_itself_failed(tmp_path: Path) -> None:
    """A database error between admission and commit undoes the admission."""
    datastore = open_new(tmp_path)

    def admit_then_break(tx: Tx) -> None:
        tx.replay.admit(1, IDS)
        tx.execute("INSERT INTO no_such_table VALUES (1)")

    with pytest.raises(DatastoreError):
        await datastore.run(admit_then_break)
    assert datastore.replay.peek(1, IDS) == b"\0\0"


async def test_a_cancellation_waits_for_the_transaction(tmp_path: Path) -> None:
    """A caller never sees ``Cancelled`` for a transaction that committed."""
    datastore = open_new(tmp_path)
    with trio.CancelScope() as scope:

        def add_while_cancelled(tx: Tx) -> None:
            tx.execute(_ADD, key_id=b"x")
            trio.from_thread.run_sync(scope.cancel)

        await datastore.run(add_while_cancelled)
        await trio.lowlevel.checkpoint()
    assert scope.cancelled_caught
    assert datastore.read_sync(count) == 1


async def test_a_reader_can_not_write(tmp_path: Path) -> None:
    """A reader can't write."""
    datastore = open_new(tmp_path)
    with pytest.raises(DatastoreError, match="readonly"):
        await datastore.read(lambda tx: tx.execute(_ADD, key_id=b"x"))


def test_e5_a_second_daemon_is_refused_and_told_who_has_the_file(tmp_path: Path) -> None:
    """One SQLite file belongs to one process."""
    path = tmp_path / "dapd.sqlite"
    first = open_for_daemon(path, holder="dapd, process 17", now=0, on_lost=refuse_to_end)
    with pytest.raises(DatastoreError, match="held by dapd, process 17"):
        open_for_daemon(path, holder="dapd, process 18", now=0, on_lost=refuse_to_end)
    first.close()
    open_for_daemon(path, holder="dapd, process 18", now=0, on_lost=refuse_to_end).close()


def test_e5_a_command_writes_beside_a_daemon_without_its_lock(tmp_path: Path) -> None:
    """``dapd task add`` works while the daemon runs, and the daemon notices it."""
    path = tmp_path / "dapd.sqlite"
    daemon = open_for_daemon(path, holder="dapd", now=0, on_lost=refuse_to_end)
    before = trio.run(daemon.datastore.data_version)
    command = open_for_command(path, holder="dapd task add", now=0)
    assert command.lock is None
    command.datastore.run_sync(lambda tx: tx.execute(_ADD, key_id=b"x"))
    command.close()
    assert trio.run(daemon.datastore.data_version) != before
    assert daemon.datastore.read_sync(count) == 1
    daemon.close()


def test_e5_a_command_without_a_daemon_creates_the_file_under_the_lock(tmp_path: Path) -> None:
    """Tasks can be added before the first start."""
    command = open_for_command(tmp_path / "dapd.sqlite", holder="dapd task add", now=0)
    assert command.lock is not None
    assert command.migrated
    command.close()


def test_i9_nobody_else_can_read_a_new_database(tmp_path: Path) -> None:
    """The same holds for its WAL, with any umask."""
    path = tmp_path / "dapd.sqlite"
    before = os.umask(0o022)
    try:
        daemon = open_for_daemon(path, holder="dapd", now=0, on_lost=refuse_to_end)
        modes = {each.name: each.stat().st_mode & 0o777 for each in tmp_path.iterdir()}
        daemon.close()
    finally:
        os.umask(before)
    files = [path.name, f"{path.name}-shm", f"{path.name}-wal", f"{path.name}.lock"]
    assert modes == dict.fromkeys(files, 0o600)


def test_a_file_of_another_program_is_not_touched(tmp_path: Path) -> None:
    """A wrong path in the configuration must not destroy another program's data."""
    path = tmp_path / "photos.sqlite"
    other = sqlite3.connect(path)
    other.execute("CREATE TABLE photos (name TEXT)")
    other.commit()
    other.close()
    before = path.read_bytes()
    with pytest.raises(DatastoreError, match="not a dapd database"):
        open_for_daemon(path, holder="dapd", now=0, on_lost=refuse_to_end)
    assert path.read_bytes() == before


def test_opening_a_database_writes_nothing(tmp_path: Path) -> None:
    """A command that only reads must not make the daemon reload everything (rule E5)."""
    path = tmp_path / "dapd.sqlite"
    daemon = open_for_daemon(path, holder="dapd", now=0, on_lost=refuse_to_end)
    before = trio.run(daemon.datastore.data_version)
    open_for_command(path, holder="dapd task list", now=0).close()
    assert trio.run(daemon.datastore.data_version) == before
    daemon.close()


def test_the_file_is_set_up_as_promised(tmp_path: Path) -> None:
    """Commits survive power loss, space can go back, deleted content is overwritten."""

    def pragma(tx: Tx, name: str) -> object:
        row = tx.one(f"PRAGMA {name}")
        return row and row[0]

    datastore = open_new(tmp_path)
    for name, value in {
        "auto_vacuum": 2,
        "journal_mode": "wal",
        "synchronous": 2,
        "secure_delete": 2,
        "foreign_keys": 1,
    }.items():
        assert datastore.run_sync(pragma, name) == value, name


def test_e5_a_file_that_can_not_give_space_back_is_refused_and_the_remedy_works(
    tmp_path: Path,
) -> None:
    """``auto_vacuum`` is a property of the file that nothing but a VACUUM changes."""
    path = tmp_path / "dapd.sqlite"
    open_for_daemon(path, holder="dapd", now=0, on_lost=refuse_to_end).close()

    def outside(sql: str) -> None:
        other = sqlite3.connect(path, isolation_level=None)
        other.executescript(sql)
        other.close()

    outside("PRAGMA auto_vacuum = NONE; VACUUM")
    with pytest.raises(DatastoreError, match="can't give space back") as caught:
        open_for_daemon(path, holder="dapd", now=0, on_lost=refuse_to_end)
    outside(str(caught.value).split('"')[1])
    open_for_daemon(path, holder="dapd", now=0, on_lost=refuse_to_end).close()


async def test_space_goes_back_in_bounded_steps(tmp_path: Path) -> None:
    """It frees as many pages as asked for, within the time; the file is shorter and intact."""
    datastore = open_new(tmp_path)

    def fill(tx: Tx) -> None:
        tx.many(_ADD, [{"key_id": bytes([i]) * 5000} for i in range(200)])

    await datastore.run(fill)
    await datastore.run(lambda tx: tx.execute("DELETE FROM sealing_keys WHERE key_id > x'04'"))
    before = await datastore.read(Tx.pages)
    assert before.free > 300
    assert await datastore.run(Tx.give_back, 100, 60.0) == 100
    assert await datastore.read(Tx.pages) == Pages(before.total - 100, before.free - 100)
    assert await datastore.run(Tx.give_back, 100, 0.0) == 0
    datastore.close()
    assert datastore.path.stat().st_size == (before.total - 100) * 4096


def test_e5_a_long_reader_never_keeps_the_writer_waiting(tmp_path: Path) -> None:
    """A backup reads for minutes: while it does, the WAL grows, and is shortened after it."""
    datastore = open_new(tmp_path)
    wal = datastore.path.with_name(datastore.path.name + "-wal")

    def note(tx: Tx) -> None:
        tx.execute("INSERT OR REPLACE INTO sealing_keys (key_id) VALUES (:id)", id=b"x")

    def commit_as_often_as_the_wal_is_looked_at() -> None:
        for _ in range(COMMITS_BETWEEN_WAL_LOOKS):
            datastore.run_sync(note)

    reader = sqlite3.connect(datastore.path)
    reader.execute("BEGIN")
    assert reader.execute(_COUNT).fetchone() == (0,)
    grown = "CREATE TABLE filler AS SELECT zeroblob(:size) AS x"
    datastore.run_sync(lambda tx: tx.execute(grown, size=WAL_LIMIT_BYTES))
    # Whatever waits for the reader would wait for ever.
    datastore._writer.execute(f"PRAGMA busy_timeout = {2**31 - 1}")
    writing = threading.Thread(target=commit_as_often_as_the_wal_is_looked_at, daemon=True)
    writing.start()
    writing.join(timeout=100)
    assert not writing.is_alive()
    assert wal.stat().st_size > WAL_LIMIT_BYTES
    reader.execute("ROLLBACK")
    reader.close()
    commit_as_often_as_the_wal_is_looked_at()
    assert wal.stat().st_size < WAL_LIMIT_BYTES
    datastore.close()
