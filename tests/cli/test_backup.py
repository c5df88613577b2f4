"""``dapd backup`` as an operator types it, beside a daemon's datastore and without one."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from dapd.config.loading import load
from dapd.crypto import sealing_key_id
from dapd.datastore import backup, open_for_command, sealed
from dapd.messages.common import b64url_encode
from dapd.protocol.task import TaskSettings
from tests.cli.typed import Run
from tests.clock import NOW
from tests.contexts import add_task, make_config, open_store
from tests.task_pair import SEALING_KEY, task_pair

CONFIG = """[datastore]
path = "state/dapd.sqlite"
sealing_keys = ["sealing.key"]
[disk]
min_free_bytes = 0
"""
GROUP = "backup"


@pytest.fixture
def config(tmp_path: Path) -> Path:
    """A Helper's configuration; its task keeps reports for a week."""
    for name in ("state", "backups"):
        (tmp_path / name).mkdir()
    make_config(tmp_path)
    path = tmp_path / "dapd.toml"
    path.write_text(CONFIG)
    opened = open_for_command(load(path).datastore.path, holder="a test", now=NOW)
    pair = task_pair(settings=TaskSettings(report_expiry_age=7 * 86_400))
    add_task(opened.datastore, pair.helper, pair)
    opened.datastore.run_sync(sealed.note_sealing_key, sealing_key_id(SEALING_KEY))
    opened.close()
    return path


@pytest.fixture
def directory(config: Path) -> Path:
    return config.parent / "backups"


def the_backup(directory: Path) -> Path:
    (found,) = directory.iterdir()
    return found


def test_a_backup_is_made_and_verified_beside_the_daemon(
    run: Run, config: Path, directory: Path
) -> None:
    """It says where it is, what it lacks, and then what it holds."""
    daemon = open_store(load(config).datastore.path)
    status, said = run(directory)
    assert status == 0, said
    made = the_backup(directory)
    assert str(made) in said
    assert f"apart from the backups: {config.parent / 'sealing.key'}" in said
    status, said = run("verify", made)
    assert status == 0, said
    assert "1  tasks\n" in said
    assert "1  hpke_keypairs.private_key\n" in said
    assert said.endswith("The backup is good.\n")
    daemon.close()


def test_a_program_reads_what_was_made(run: Run, config: Path, directory: Path) -> None:
    """And what monitoring reads later is the same."""
    status, said = run(directory, "--json", "--keep", "2")
    assert status == 0, said
    made = json.loads(said)
    assert made["path"] == str(the_backup(directory))
    assert made["removed"] == []
    last = backup.last_backup(load(config).datastore.path)
    assert last is not None
    assert (last.sequence, last.size, last.made_at) == (
        made["sequence"],
        made["size"],
        made["made_at"],
    )
    status, said = run("verify", "--json", made["path"])
    assert status == 0
    assert json.loads(said)["sequence"] == made["sequence"]


def test_backups_are_kept_no_longer_than_reports(run: Run, directory: Path) -> None:
    """What must be gone from the database must be gone from its backups."""
    status, said = run("--keep", "8", directory)
    assert status == 2
    assert "give at most 7" in said
    assert list(directory.iterdir()) == []
    status, said = run("--keep", "7", directory)
    assert status == 0, said


def test_no_key_travels_with_a_backup(run: Run, config: Path) -> None:
    """Who copies the directory elsewhere would copy the key."""
    status, said = run(config.parent)
    assert status == 2
    assert "sealing key" in said
    assert "choose another directory" in said


def test_the_daemon_keeps_the_room_that_it_needs(run: Run, config: Path, directory: Path) -> None:
    """E4: a backup on the database's disk does not make the daemon refuse uploads."""
    config.write_text(CONFIG.replace("= 0", f"= {1 << 49}"))
    status, said = run(directory)
    assert status == 1
    assert "free some space there" in said
    assert list(directory.iterdir()) == []


def test_a_missing_directory_is_not_made(run: Run, directory: Path) -> None:
    """A disk that is not mounted would be one."""
    status, said = run(directory / "more")
    assert status == 1
    assert "create this directory" in said
    assert not (directory / "more").exists()


def test_a_backup_that_other_keys_sealed_does_not_pass(
    run: Run, config: Path, directory: Path
) -> None:
    """The missing key is named; the exit status tells a program."""
    run(directory)
    (config.parent / "sealing.key").write_text(b64url_encode(bytes(32)))
    status, said = run("verify", the_backup(directory))
    assert status == 1
    assert sealing_key_id(SEALING_KEY).hex() in said


def test_help_is_one_page(run: Run) -> None:
    """The hidden command behind ``dapd backup DIR`` shows nowhere."""
    status, said = run("--help")
    assert status == 0
    assert "DIR | verify FILE" in said
    assert "--keep DAYS" in said
    assert "make" not in said.split("Commands:")[1]
