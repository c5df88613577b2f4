"""The commit sequence beside the database reveals an older copy of it."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from dapd.datastore import Opened, Tx, open_for_command, open_for_daemon
from dapd.datastore.lock import holder_of, lock_path
from dapd.datastore.sqlite import commit_sequence
from dapd.errors import UnfitDatastore
from tests.clock import NOW

_ADD = "INSERT INTO upload_groups (group_key) VALUES (randomblob(16))"
_FORGET = "DELETE FROM upload_groups"


def refuse_to_end(message: str) -> None:
    raise AssertionError(message)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "dapd.sqlite"


def daemon(path: Path) -> Opened:
    return open_for_daemon(path, holder="dapd, process 17", now=NOW, on_lost=refuse_to_end)


def command(path: Path) -> Opened:
    return open_for_command(path, holder="dapd task add", now=NOW)


def add(opened: Opened, count: int = 1) -> None:
    for _ in range(count):
        opened.datastore.run_sync(lambda tx: tx.execute(_ADD))


def own(opened: Opened) -> int:
    return opened.datastore.read_sync(commit_sequence)


def recorded(opened: Opened) -> int:
    assert opened.lock is not None
    return opened.lock.sequence


def older_copy(path: Path, commits: int = 3) -> None:
    """Replace the database by its copy from ``commits`` commits ago."""
    opened = daemon(path)
    add(opened, 5)
    opened.close()
    copy = path.with_name("copy")
    shutil.copyfile(path, copy)
    opened = daemon(path)
    add(opened, commits)
    opened.close()
    shutil.copyfile(copy, path)


def test_every_commit_that_stores_is_recorded_and_nothing_lowers_it(path: Path) -> None:
    """Deleted rows still count; rolled back ones never do."""
    opened = daemon(path)
    add(opened, 3)
    before = own(opened)
    assert recorded(opened) == before

    def add_and_fail(tx: Tx) -> None:
        tx.execute(_ADD)
        raise LookupError

    with pytest.raises(LookupError):
        opened.datastore.run_sync(add_and_fail)
    opened.datastore.run_sync(lambda tx: tx.execute(_FORGET))
    assert recorded(opened) == own(opened) == before
    add(opened)
    assert recorded(opened) == own(opened) == before + 1
    opened.close()


def test_it_survives_restarts_and_commands(path: Path) -> None:
    """The next holder of the lock keeps the record, and writes its own description."""
    opened = daemon(path)
    add(opened, 4)
    sequence = recorded(opened)
    assert holder_of(path) == "dapd, process 17"
    beside = command(path)
    assert beside.lock is None
    beside.close()
    opened.close()

    opened = command(path)
    assert holder_of(path) == "dapd task add"
    assert (opened.behind, recorded(opened)) == (False, sequence)
    add(opened)
    opened.close()
    opened = daemon(path)
    assert (opened.behind, recorded(opened)) == (False, sequence + 1)
    opened.close()


def test_an_older_copy_is_behind_until_it_is_accepted(path: Path) -> None:
    """If a start ends before the quarantine, the next one finds the file behind again."""
    older_copy(path)
    for _ in range(2):
        opened = daemon(path)
        assert opened.behind
        opened.close()
    opened = daemon(path)
    opened.accept_sequence()
    assert recorded(opened) == own(opened)
    opened.close()
    opened = daemon(path)
    assert not opened.behind
    opened.close()


def test_an_older_copy_does_not_catch_up_by_new_commits(path: Path) -> None:
    """A command's commits don't hide that the file lacks as many others."""
    older_copy(path, commits=3)
    opened = command(path)
    assert opened.behind
    add(opened, 10)
    opened.close()
    opened = daemon(path)
    assert opened.behind
    opened.close()


@pytest.mark.parametrize("left", [b"", bytes(64), b"dapd, process 3\n", b"00000000000"])
def test_an_unreadable_record_counts_as_none(path: Path, left: bytes) -> None:
    """After a power loss the lock file may be damaged; the daemon still starts."""
    opened = daemon(path)
    add(opened, 4)
    opened.close()
    lock_path(path).write_bytes(left)
    opened = daemon(path)
    assert not opened.behind
    add(opened)
    assert recorded(opened) == own(opened)
    opened.close()
    assert not daemon(path).behind


def test_a_commit_stands_if_its_sequence_can_not_be_recorded(path: Path) -> None:
    """If the record can't be written, commits still succeed."""
    opened = daemon(path)
    assert opened.lock is not None
    # No file mode stops root, and a file that is open already stops nobody: hence its descriptor.
    writable = opened.lock._descriptor
    opened.lock._descriptor = os.open(lock_path(path), os.O_RDONLY)
    add(opened)
    assert recorded(opened) < own(opened)
    os.close(opened.lock._descriptor)
    opened.lock._descriptor = writable
    add(opened)
    assert recorded(opened) == own(opened)
    opened.close()


def begin_wal_anew(opened: Opened) -> None:
    """As SQLite does by itself after a thousand pages."""
    opened.datastore._writer.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    add(opened)


def as_killed(path: Path, *, copy: Path | None = None) -> Path:
    """The files as SIGKILL would leave them now, or with ``copy`` in the database's place."""
    left = path.with_name("killed")
    left.mkdir(exist_ok=True)
    for each in (path, path.with_name(f"{path.name}-wal"), lock_path(path)):
        shutil.copyfile(each, left / each.name)
    if copy is not None:
        shutil.copyfile(copy, left / path.name)
    return left / path.name


def copied(path: Path) -> Path:
    return Path(shutil.copyfile(path, path.with_name("copy")))


def test_d2_an_older_copy_beside_the_wal_of_the_replaced_file_is_refused(path: Path) -> None:
    """SQLite would put pages of the newer database into the older one. A killed daemon's own files
    are opened as ever, whenever the WAL began, and so is a copy once the WAL is away.
    """
    opened = daemon(path)
    add(opened, 3)
    opened.close()
    copy = copied(path)
    opened = daemon(path)
    add(opened, 3)
    again = daemon(as_killed(path))
    assert (again.behind, own(again)) == (False, own(opened))
    again.close()
    begin_wal_anew(opened)
    again = daemon(as_killed(path))
    assert (again.behind, own(again)) == (False, own(opened))
    again.close()

    killed = as_killed(path, copy=copy)
    with pytest.raises(UnfitDatastore, match="is older than its -wal"):
        daemon(killed)
    killed.with_name(f"{path.name}-wal").unlink()
    again = daemon(killed)
    assert again.behind
    add(again)
    twice = daemon(as_killed(killed))
    assert twice.behind
    twice.close()
    again.close()
    opened.close()
