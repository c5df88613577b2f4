"""Migrations are all or nothing, make a copy first, and can be undone."""

from __future__ import annotations

import sqlite3
from pathlib import Path

import pytest

from dapd.datastore import Opened, Tx, open_for_command, open_for_daemon
from dapd.datastore.backup import before_upgrade
from dapd.datastore.migrate import Migration, migrate, migrations, parse
from dapd.datastore.sqlite import commit_sequence, connect
from dapd.errors import DatastoreError
from tests.clock import NOW
from tests.contexts import add_task
from tests.task_pair import task_pair

_ADD = "INSERT INTO sealing_keys (key_id) VALUES (:key_id)"
_KEYS = "SELECT key_id FROM sealing_keys ORDER BY key_id"

CARRIED = migrations()
"""The migrations of this program, before a test adds more."""
NEXT = CARRIED[-1].version + 1
EXPANDS = f"""-- compatible_from: {CARRIED[-1].version}
ALTER TABLE sealing_keys ADD COLUMN note TEXT;
CREATE TABLE notes (note_pk INTEGER PRIMARY KEY AUTOINCREMENT, text TEXT NOT NULL);
"""
CONTRACTS = "DROP TABLE upload_groups;\n"


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "dapd.sqlite"


class Program:
    """A dapd that carries more migrations, or fewer, than this one."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self.carried = CARRIED

    def carries(self, *more: Migration) -> None:
        self.carried = [*CARRIED, *more]

    def start(self) -> Opened:
        return open_for_daemon(
            self._path, holder="dapd", now=NOW, on_lost=refuse_to_end, carried=self.carried
        )

    def open_for_command(self) -> Opened:
        return open_for_command(self._path, holder="dapd key", now=NOW, carried=self.carried)

    def run(self, *ids: bytes) -> list[bytes]:
        """Start it, let it add keys, and stop it; return all keys."""
        opened = self.start()
        for key_id in ids:
            opened.datastore.run_sync(add_key, key_id)
        found = opened.datastore.read_sync(lambda tx: [row[0] for row in tx.all(_KEYS)])
        opened.close()
        return found


@pytest.fixture
def program(path: Path) -> Program:
    return Program(path)


def add_key(tx: Tx, key_id: bytes) -> None:
    tx.execute(_ADD, key_id=key_id)


def refuse_to_end(message: str) -> None:
    raise AssertionError(message)


def copies(path: Path) -> list[str]:
    return sorted(each.name for each in path.parent.glob("*.before-schema-*"))


def test_an_upgrade_can_be_taken_back(program: Program, path: Path) -> None:
    """The older program reads and writes what the newer one made of the file, and the newer one
    goes on with what the older one wrote.
    """
    program.run(b"a")
    program.carries(parse(NEXT, "expands", EXPANDS))
    assert program.run(b"b") == [b"a", b"b"]
    program.carries()
    assert program.run(b"c") == [b"a", b"b", b"c"]
    command = program.open_for_command()
    command.datastore.run_sync(add_key, b"d")
    command.close()
    program.carries(parse(NEXT, "expands", EXPANDS))
    opened = program.start()
    assert not opened.migrated
    rows = opened.datastore.read_sync(lambda tx: tx.all("SELECT note FROM sealing_keys"))
    assert rows == [(None,)] * 4
    opened.close()


def test_a_program_that_is_too_old_is_refused(program: Program, path: Path) -> None:
    """It might break newer data; the error says what to do, and nothing changes."""
    program.run(b"a")
    program.carries(parse(NEXT, "contracts", CONTRACTS))
    program.run(b"b")
    program.carries()
    before = path.read_bytes()
    for start in (program.start, program.open_for_command):
        with pytest.raises(DatastoreError, match=r"newer than this dapd.*dapd restore"):
            start()
    assert path.read_bytes() == before


def test_the_newest_migration_decides_who_may_run(program: Program) -> None:
    """The newest migration's ``compatible_from`` covers all earlier ones."""
    further = parse(
        NEXT + 1, "further", f"-- compatible_from: {NEXT}\nCREATE TABLE further (x INTEGER);\n"
    )
    program.carries(parse(NEXT, "expands", EXPANDS), further)
    program.run(b"a")
    program.carries(parse(NEXT, "expands", EXPANDS))
    assert program.run() == [b"a"]
    program.carries()
    with pytest.raises(DatastoreError, match=f"at least {NEXT}"):
        program.start()


def test_every_schema_file_says_who_may_run_on_it() -> None:
    """Every released file states ``compatible_from`` explicitly."""
    for migration in CARRIED:
        assert "-- compatible_from: " in migration.statements[0], migration.name
        assert 1 <= migration.compatible_from <= migration.version


def test_a_migration_that_fails_leaves_nothing(program: Program, path: Path) -> None:
    """Migrations are applied all or nothing."""
    program.carries(parse(NEXT, "bad", "CREATE TABLE fine (x);\nNO SQL;\n"))
    connection = connect(path)
    with pytest.raises(DatastoreError, match="could not be brought up to date"):
        migrate(connection, path, 0, program.carried)
    assert connection.execute("SELECT count(*) FROM sqlite_master").fetchone()[0] == 0
    connection.close()


def test_an_upgrade_leaves_the_database_as_it_was_beside_it(program: Program, path: Path) -> None:
    """Only the last copy is kept; an empty database needs none."""
    program.run(b"a")
    assert copies(path) == []
    program.carries(parse(NEXT, "expands", EXPANDS))
    opened = program.start()
    assert opened.copied_to == path.with_name(f"dapd.sqlite.before-schema-{NEXT}")
    assert opened.copied_to.stat().st_mode & 0o777 == 0o600
    opened.close()
    opened = program.start()
    assert opened.copied_to is None
    opened.close()

    program.carries(parse(NEXT, "expands", EXPANDS), parse(NEXT + 1, "contracts", CONTRACTS))
    program.run(b"b")
    assert copies(path) == [f"dapd.sqlite.before-schema-{NEXT + 1}"]
    kept = sqlite3.connect(path.with_name(f"dapd.sqlite.before-schema-{NEXT + 1}"))
    assert kept.execute(_KEYS).fetchall() == [(b"a",)]
    assert kept.execute("SELECT max(version) FROM schema_migrations").fetchone() == (NEXT,)
    kept.close()


def test_there_is_no_copy_without_room_for_it(program: Program, path: Path) -> None:
    """It is refused, and leaves nothing."""
    program.run(b"a")
    with pytest.raises(DatastoreError, match=r"not upgraded to schema.*free some space"):
        before_upgrade(path, NEXT, now=NOW, spare=1 << 60)
    assert sorted(each.name for each in path.parent.iterdir()) == [
        "dapd.sqlite",
        "dapd.sqlite.lock",
    ]


def test_there_is_no_upgrade_without_the_copy(program: Program, path: Path) -> None:
    """It is refused before anything changes, and goes on once the copy can be made."""
    program.run(b"a")
    program.carries(parse(NEXT, "expands", EXPANDS))
    in_the_way = path.with_name(f"dapd.sqlite.before-schema-{NEXT}")
    in_the_way.mkdir()
    with pytest.raises(DatastoreError, match="not upgraded to schema"):
        program.start()
    in_the_way.rmdir()
    program.carries()
    program.run()
    program.carries(parse(NEXT, "expands", EXPANDS))
    assert program.run() == [b"a"]


def test_an_upgrade_does_not_make_the_file_seem_older(program: Program) -> None:
    """Dropping a table drops its sequence, but the commit sequence does not fall."""
    pair = task_pair()
    opened = program.start()
    add_task(opened.datastore, pair.leader, pair)
    for _ in range(9):
        opened.datastore.run_sync(
            lambda tx: tx.execute("INSERT INTO upload_groups (group_key) VALUES (randomblob(16))")
        )
    sequence = opened.datastore.read_sync(commit_sequence)
    opened.close()
    program.carries(parse(NEXT, "contracts", CONTRACTS))
    opened = program.start()
    assert not opened.behind
    assert opened.datastore.read_sync(commit_sequence) == sequence
    opened.close()
