"""Copies of a database are complete and private, and deleted in time."""

from __future__ import annotations

import os
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest

from dapd.crypto import make_sealer, sealing_key_id
from dapd.datastore import Opened, backup, safe_clock, sealed
from dapd.datastore.backup import Copy
from dapd.datastore.safe_clock import StoredClock
from dapd.datastore.sqlite import commit_sequence
from dapd.datastore.verify import Verified, verify
from dapd.errors import DatastoreError
from dapd.protocol.task import TaskSettings
from tests.clock import NOW
from tests.contexts import add_task, open_store
from tests.task_pair import SEALING_KEY, TaskPair, task_pair

DAY = 86_400
WEEK = TaskSettings(report_expiry_age=7 * DAY)
CENTURY = 100 * 366 * DAY * 1000


@pytest.fixture
def path(tmp_path: Path) -> Path:
    (tmp_path / "state").mkdir()
    return tmp_path / "state" / "dapd.sqlite"


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    (tmp_path / "backups").mkdir()
    return tmp_path / "backups"


@pytest.fixture
def opened(path: Path) -> Iterator[Opened]:
    """A daemon's database with a Leader's task whose reports are kept for a week."""
    opened = ready(path)
    yield opened
    opened.close()


def ready(path: Path) -> Opened:
    opened = open_store(path)
    add(opened, task_pair(settings=WEEK))
    return opened


def add(opened: Opened, pair: TaskPair) -> None:
    add_task(opened.datastore, pair.leader, pair)
    opened.datastore.run_sync(sealed.note_sealing_key, sealing_key_id(SEALING_KEY))


def at(opened: Opened, days: float) -> int:
    """Let the daemon's safe clock advance to this time."""
    now = NOW + int(days * DAY * 1000)
    opened.datastore.run_sync(safe_clock.store, StoredClock(now))
    opened.datastore.run_sync(
        lambda tx: tx.execute("INSERT INTO upload_groups (group_key) VALUES (randomblob(16))")
    )
    return now


def take(path: Path, directory: Path, *, now: int = NOW, spare: int = 0) -> Copy:
    return backup.take(path, directory, backup.backup_name, now=now, spare=spare)


def looked_into(path: Path) -> Verified:
    return verify(path, make_sealer([SEALING_KEY]), [sealing_key_id(SEALING_KEY)])


def names(directory: Path) -> list[str]:
    return sorted(each.name for each in directory.iterdir())


def test_a_backup_is_what_was_committed_and_for_this_user_alone(
    opened: Opened, path: Path, directory: Path
) -> None:
    """A backup of the open database includes its WAL; its name has time and sequence."""
    at(opened, 0)
    copy = take(path, directory)
    assert copy.sequence == opened.datastore.read_sync(commit_sequence)
    assert names(directory) == [f"dapd-20270115T080000Z-{copy.sequence}.sqlite"]
    assert copy.path.stat().st_mode & 0o777 == 0o600
    found = looked_into(copy.path)
    assert (found.sequence, found.state_of) == (copy.sequence, NOW)
    assert found.rows["tasks"] == found.opened["tasks.verify_key"] == 1
    assert SEALING_KEY not in copy.path.read_bytes()
    assert names(directory) == [copy.path.name]


def test_a_backup_takes_the_databases_place(path: Path, directory: Path) -> None:
    """A copy has auto_vacuum and the commit sequence of a database made by the daemon."""
    opened = ready(path)
    copy = take(path, directory)
    opened.close()
    shutil.copyfile(copy.path, path)
    again = open_store(path)
    assert not again.behind
    again.close()


def test_it_is_refused_where_there_is_no_room(opened: Opened, path: Path, directory: Path) -> None:
    """The reserve stays free, and the error says how much space is needed."""
    with pytest.raises(DatastoreError, match=r"MB free, a copy of the database needs \d+ MB"):
        take(path, directory, spare=1 << 60)
    assert names(directory) == []


def test_a_write_that_fails_leaves_nothing(opened: Opened, path: Path, directory: Path) -> None:
    """The disk may fill up during the backup."""
    program = (
        "import resource, sys; from pathlib import Path;"
        "from tests.datastore.test_backup import take;"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (65536, resource.RLIM_INFINITY));"
        "take(Path(sys.argv[1]), Path(sys.argv[2]))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, path, directory], capture_output=True, check=False
    )
    assert done.returncode == 1
    assert b"no backup of" in done.stderr, done.stderr
    assert names(directory) == []


def test_an_interrupted_backup_leaves_nothing(opened: Opened, path: Path, directory: Path) -> None:
    """Neither the backup nor a partial file is left."""

    def interrupted(copy: Copy) -> str:
        assert len(names(directory)) == 1
        raise KeyboardInterrupt(copy.path)

    with pytest.raises(KeyboardInterrupt):
        backup.take(path, directory, interrupted, now=NOW, spare=0)
    assert names(directory) == []


def test_what_a_killed_backup_left_goes_with_the_next(
    opened: Opened, path: Path, directory: Path
) -> None:
    """A killed process can't clean up, so the next backup does."""
    for name in (".dapd-0123456789abcdef.partial", ".dapd-0123456789abcdef.partial-journal"):
        (directory / name).write_bytes(b"half")
    (directory / "notes.partial").write_bytes(b"somebody's")
    copy = take(path, directory)
    assert names(directory) == [copy.path.name, "notes.partial"]


def test_two_at_once_are_refused(opened: Opened, path: Path, directory: Path) -> None:
    """The second backup must not delete the first one's partial file."""

    def meanwhile(copy: Copy) -> str:
        with pytest.raises(DatastoreError, match="another backup is running"):
            take(path, directory)
        return backup.backup_name(copy)

    backup.take(path, directory, meanwhile, now=NOW, spare=0)
    assert len(names(directory)) == 1


def test_a_damaged_database_gives_no_backup(path: Path, directory: Path) -> None:
    """An old good backup is worth more than a new bad one."""
    opened = ready(path)
    at(opened, 0)
    opened.close()
    damaged = bytearray(path.read_bytes())
    damaged[4096 * 2 : 4096 * 6] = os.urandom(4096 * 4)
    path.write_bytes(damaged)
    with pytest.raises(DatastoreError):
        take(path, directory)
    assert names(directory) == []


def test_without_a_database_none_is_made(tmp_path: Path, directory: Path) -> None:
    """A wrong path in the configuration must not create an empty database."""
    with pytest.raises(DatastoreError, match="no such database"):
        take(tmp_path / "typo.sqlite", directory)
    assert names(tmp_path) == ["backups"]


def test_backups_go_when_their_reports_must(opened: Opened, path: Path, directory: Path) -> None:
    """They are removed in time, and other files stay."""
    (directory / "dapd-notes.sqlite").write_bytes(b"somebody's")
    taken = [take(path, directory, now=at(opened, day)) for day in (0, 1, 6, 8)]
    removed = backup.remove_old_backups(taken[-1], None)
    assert removed == [taken[0].path]
    assert not taken[0].path.exists()
    removed = backup.remove_old_backups(taken[-1], 3 * DAY)
    assert removed == [taken[1].path]
    assert len(names(directory)) == 3


def test_each_backup_goes_by_the_tasks_in_it(opened: Opened, path: Path, directory: Path) -> None:
    """An old backup expires by its own tasks, even if they are deleted by now."""
    old = take(path, directory, now=at(opened, 0))
    opened.datastore.run_sync(lambda tx: tx.execute("UPDATE tasks SET state = 'purged'"))
    new = take(path, directory, now=at(opened, 8))
    assert new.shortest_age is None
    assert backup.remove_old_backups(new, None) == [old.path]


def test_backups_stay_if_nothing_expires(path: Path, directory: Path) -> None:
    """Then only ``--keep`` limits their age."""
    opened = open_store(path)
    add(opened, task_pair(settings=replace(WEEK, report_expiry_age=None)))
    taken = [take(path, directory, now=at(opened, day)) for day in (0, 1000)]
    assert backup.remove_old_backups(taken[-1], None) == []
    assert backup.remove_old_backups(taken[-1], 10 * DAY) == [taken[0].path]
    opened.close()


def test_d6_a_minute_in_another_century_removes_no_backup(
    opened: Opened, path: Path, directory: Path
) -> None:
    """A backup's age goes by the safe clock, which no jump moves."""
    old = take(path, directory, now=at(opened, 0))
    at(opened, 1)
    new = take(path, directory, now=NOW + CENTURY)
    assert new.state_of == NOW + DAY * 1000
    assert backup.remove_old_backups(new, None) == []
    assert old.path.exists()


def test_a_damaged_old_backup_goes_in_time_too(opened: Opened, path: Path, directory: Path) -> None:
    """A damaged backup may still contain readable reports."""
    old = take(path, directory, now=at(opened, 0))
    old.path.write_bytes(b"damaged" * 1000)
    os.utime(old.path, (NOW // 1000, NOW // 1000))
    new = take(path, directory, now=at(opened, 8))
    assert backup.remove_old_backups(new, None) == [old.path]


def test_copies_beside_the_database_go_in_time_too(opened: Opened, path: Path) -> None:
    """Copies kept by upgrades and restores contain reports too."""
    before = backup.before_upgrade(path, 7, now=at(opened, 0))
    restored = path.with_name("dapd.sqlite.before-restore-1800000000")
    shutil.copyfile(before.path, restored)
    wal = path.with_name(f"{restored.name}-wal")
    wal.write_bytes(b"")
    assert backup.remove_expired_copies(path, at(opened, 6), None) == []
    assert backup.remove_expired_copies(path, at(opened, 8), None) == [before.path, restored]
    assert not wal.exists()
    assert path.exists()


def test_the_last_backup_is_known_without_the_database(
    opened: Opened, path: Path, directory: Path
) -> None:
    """Monitoring reads it without opening the database (rule E5)."""
    assert backup.last_backup(path) is None
    copy = take(path, directory)
    assert backup.note_backup(path, copy, now=NOW + 7) == backup.last_backup(path)
    last = backup.last_backup(path)
    assert last is not None
    assert (last.made_at, last.path, last.size) == (NOW + 7, str(copy.path), copy.size)
    assert names(path.parent) == sorted(
        f"dapd.sqlite{suffix}" for suffix in ("", "-shm", "-wal", ".last-backup", ".lock")
    )
    backup.last_backup_path(path).write_bytes(b"{")
    assert backup.last_backup(path) is None


def plant(path: Path, sql: str) -> None:
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        connection.execute(sql)


def test_verifying_touches_nothing(opened: Opened, path: Path, directory: Path) -> None:
    """A read-only file in a read-only directory can be verified."""
    copy = take(path, directory)
    copy.path.chmod(0o400)
    before = copy.path.read_bytes(), copy.path.stat().st_mtime_ns
    looked_into(copy.path)
    assert (copy.path.read_bytes(), copy.path.stat().st_mtime_ns) == before
    assert names(directory) == [copy.path.name]


@pytest.mark.parametrize(
    ("fault", "said"),
    {
        "UPDATE tasks SET verify_key = zeroblob(length(verify_key))": "not a sealed value",
        "UPDATE tasks SET verify_key = CAST(substr(verify_key, 1, 60) || x'00' AS BLOB)": (
            "does not open"
        ),
        "INSERT INTO sealing_keys VALUES (x'0102030405060708')": "0102030405060708",
        "PRAGMA application_id = 7": "not a dapd database",
        "INSERT INTO schema_migrations VALUES (9, 'further', 0, 9)": "newer than this dapd",
        "UPDATE tasks SET expired_before = -1": "a watermark of the task is negative",
    }.items(),
)
def test_a_backup_with_a_fault_does_not_pass(
    opened: Opened, path: Path, directory: Path, fault: str, said: str
) -> None:
    """The error names the fault that makes the backup useless, and its place."""
    copy = take(path, directory)
    plant(copy.path, fault)
    with pytest.raises(DatastoreError, match=said):
        looked_into(copy.path)


def test_a_torn_or_live_file_does_not_pass(opened: Opened, path: Path, directory: Path) -> None:
    """Half a backup, another file and a database in use are refused."""
    copy = take(path, directory)
    whole = copy.path.read_bytes()
    at(opened, 0)
    for content, said in (
        (whole[: len(whole) // 2], "damaged|malformed|SQLite"),
        (b"hello" * 1000, "not a database"),
        (b"", "not a dapd database"),
    ):
        copy.path.write_bytes(content)
        with pytest.raises(DatastoreError, match=said):
            looked_into(copy.path)
    with pytest.raises(DatastoreError, match="a database in use"):
        looked_into(path)
    with pytest.raises(DatastoreError, match="no such file"):
        looked_into(directory / "none")
