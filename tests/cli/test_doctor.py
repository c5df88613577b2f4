"""``dapd doctor`` on files alone: each problem is one failure with its remedy."""

from __future__ import annotations

import json
import os
import shutil
import sqlite3
import time
import tomllib
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import msgspec
import pytest
import trio

from dapd.advice.thresholds import BACKUP_AGE
from dapd.cli import main, service
from dapd.cli.doctor.daemon import daemon
from dapd.cli.doctor.findings import Finding, Steps, check, ok
from dapd.datastore.backup import LastBackup, last_backup_path
from dapd.datastore.migrate import migrations
from dapd.errors import DatastoreError, UsageError
from dapd.messages.common import b64url_encode
from tests.certificates import Authority
from tests.pair_harness import open_pair

Look = Callable[..., list[dict[str, Any]]]
SAFE_CLOCK = "INSERT INTO safe_clock (one, safe_now, doubted) VALUES (1, ?, 0)"


def run(*arguments: object) -> int:
    with pytest.raises(SystemExit) as exit_:
        main([str(each) for each in arguments])
    assert isinstance(exit_.value.code, int)
    return exit_.value.code


@pytest.fixture
def config(tmp_path: Path) -> Path:
    """The configuration that ``dapd init`` makes, with room on any disk."""
    assert run("init", "--role", "helper", "--url", "http://127.0.0.1:9/", "--dir", tmp_path) == 0
    path = tmp_path / "dapd.toml"
    path.write_text(path.read_text() + "\n[disk]\nmin_free_bytes = 0\n")
    return path


@pytest.fixture
def look(config: Path, capsys: pytest.CaptureFixture[str]) -> Look:
    """Run ``dapd doctor`` and return its findings, if the exit status fits them."""

    def findings(*arguments: object) -> list[dict[str, Any]]:
        capsys.readouterr()
        status = run("--config", config, "doctor", "--json", *arguments)
        said = capsys.readouterr()
        assert said.err == ""
        found: list[dict[str, Any]] = json.loads(said.out)["findings"]
        assert status == any(each["level"] == "failure" for each in found)
        assert all(each["remedy"] for each in found if each["level"] in ("failure", "warning"))
        return found

    return findings


@pytest.fixture
def used(config: Path) -> Path:
    """The configuration of a database that commands have used, but no daemon yet."""
    assert run("--config", config, "key", "add", "--active") == 0
    return config


@pytest.fixture
def with_task(used: Path, tmp_path: Path) -> Path:
    """The configuration of a Helper that has a task, whose files are in ``task``."""
    assert run(
        "task", "new", "--vdaf", "count", "--batch-mode", "time-interval", "--time-precision", 3600,
        "--min-batch-size", 3, "--leader", "http://127.0.0.1:9/", "--helper",
        "http://127.0.0.1:10/", "--out", tmp_path / "task",
    ) == 0  # fmt: skip
    assert run("--config", used, "task", "add", tmp_path / "task/helper.toml") == 0
    return used


def of(found: list[dict[str, Any]], name: str, level: str | None = None) -> list[dict[str, Any]]:
    return [each for each in found if each["check"] == name and level in (None, each["level"])]


def failures(found: list[dict[str, Any]]) -> list[tuple[str, str, str]]:
    """Return check, problem and remedy of each failure, but not that no daemon runs."""
    return [
        (each["check"], each["detail"], each["remedy"])
        for each in found
        if each["level"] == "failure" and each["check"] != "daemon"
    ]


def change(config: Path, sql: str, *values: object) -> None:
    """Change the database as a command or a fault would."""
    database = sqlite3.connect(config.parent / "state/dapd.sqlite")
    with database:
        database.execute(sql, values)
    database.close()


def test_right_after_init_nothing_is_wrong_and_it_says_what_comes_next(
    config: Path, look: Look
) -> None:
    """No database and no daemon yet: neither is a failure, and doctor makes no file."""
    before = sorted(config.parent.rglob("*"))
    found = look()
    assert failures(found) == []
    (asked,) = of(found, "daemon")
    assert asked["level"] == "warning"
    assert asked["remedy"] == f"next: `dapd --config {config}`"
    assert [each["level"] for each in of(found, "database")] == ["skipped"]
    assert sorted(config.parent.rglob("*")) == before


def test_it_changes_nothing_of_a_database(used: Path, look: Look) -> None:
    """No file is made beside it, no lock taken, no schema migrated."""
    state = used.parent / "state"
    before = {path: path.read_bytes() for path in state.iterdir()}
    found = look()
    assert {path: path.read_bytes() for path in state.iterdir()} == before
    assert [each["level"] for each in of(found, "database")] == ["ok"]
    assert of(found, "daemon")[0]["level"] == "failure"
    assert "start it: `dapd" in of(found, "daemon")[0]["remedy"]


def test_findings_are_in_columns_with_the_remedy_below_and_the_sum_last(
    used: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """No meaning is in colour, and each line makes sense alone."""
    (used.parent / "state").chmod(0o777)
    capsys.readouterr()
    assert run("--config", used, "doctor") == 1
    lines = capsys.readouterr().out.splitlines()
    at = next(number for number, line in enumerate(lines) if " modes " in line)
    state = used.parent / "state"
    assert lines[at] == f"FAIL  modes         {state}: other users may change its content"
    assert lines[at + 1] == f"                    -> `chmod 700 {state}`"
    assert {line[:4].strip() for line in lines[:-2]} == {"ok", "WARN", "FAIL", "skip", ""}
    assert lines[-1].startswith("2 failures, 1 warning, "), "the daemon, the mode; the backup"


def test_json_is_one_document_with_the_counts(config: Path, look: Look) -> None:
    """Every finding has the same keys."""
    found = look()
    assert {tuple(each) for each in found} == {("check", "subject", "level", "detail", "remedy")}
    assert msgspec.convert(found, list[Finding])
    levels = {each["level"] for each in found}
    assert levels == {"ok", "warning", "skipped"}


@pytest.mark.parametrize(
    ("text", "detail"),
    [
        ("[server\n", "Expected ']'"),
        ("[servers]\nport = 1\n", "unknown key `servers`"),
    ],
)
def test_a_configuration_that_does_not_load_is_a_finding(
    config: Path, look: Look, text: str, detail: str
) -> None:
    """It has the error's message, and the other checks are skipped."""
    config.write_text(text + config.read_text())
    found = look()
    ((name, said, _),) = failures(found)
    assert name == "config"
    assert detail in said
    assert [each["check"] for each in found] == ["config", "rest"]


def test_without_a_configuration_it_says_how_to_make_one(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("DAPD_CONFIG", str(tmp_path / "none.toml"))
    assert run("doctor") == 1
    assert "make one with `dapd init`" in capsys.readouterr().out


def _remove_key(key: Path) -> None:
    key.unlink()


def _let_others_read(key: Path) -> None:
    key.chmod(0o644)


def _cut(key: Path) -> None:
    key.write_text("AAAA")


@pytest.mark.parametrize(
    ("spoil", "remedy"),
    [(_remove_key, "restore it from its backup"), (_let_others_read, ""), (_cut, "restore it")],
)
def test_a_sealing_key_that_the_daemon_would_refuse(
    used: Path, look: Look, spoil: Callable[[Path], None], remedy: str
) -> None:
    """Missing, open to others, or no key."""
    key = used.parent / "keys/sealing-1.key"
    spoil(key)
    ((name, detail, said),) = failures(look())
    assert name == "sealing_keys"
    assert str(key) in detail
    assert said.startswith(remedy or f"run `chmod 600 {key}`")


def test_one_sealing_key_in_two_files(used: Path, look: Look) -> None:
    key = used.parent / "keys/sealing-1.key"
    shutil.copy(key, key.with_name("copy.key"))
    line = 'sealing_keys = ["keys/sealing-1.key"'
    used.write_text(used.read_text().replace(line, f'{line}, "keys/copy.key"'))
    assert failures(look()) == [
        ("sealing_keys", "two of the files have the same key", "list only one of them")
    ]


def test_f2_another_sealing_key_than_the_databases(with_task: Path, look: Look) -> None:
    """One finding asks for the key, instead of one for each value that doesn't open."""
    key = with_task.parent / "keys/sealing-1.key"
    key.write_text(b64url_encode(os.urandom(32)))
    ((name, detail, remedy),) = failures(look("--offline"))
    assert name == "database"
    assert "which is not in [datastore] sealing_keys" in detail
    assert "add that key's file" in remedy


@pytest.mark.parametrize(
    ("path", "mode", "remedy"),
    [
        ("dapd.toml", 0o666, "chmod go-w"),
        ("keys", 0o777, "chmod go-w"),
        ("state", 0o770, "chmod 700"),
        ("state/dapd.sqlite", 0o606, "chmod o-rwx"),
    ],
)
def test_what_others_may_change(used: Path, look: Look, path: str, mode: int, remedy: str) -> None:
    """Users that may change these files control the daemon."""
    (used.parent / path).chmod(mode)
    ((name, _, said),) = failures(look())
    assert (name, said) == ("modes", f"`{remedy} {used.parent / path}`")


def test_a_state_directory_that_others_may_read_is_a_warning(used: Path, look: Look) -> None:
    """Its secrets are sealed."""
    (used.parent / "state").chmod(0o755)
    found = look()
    assert failures(found) == []
    assert [each["level"] for each in of(found, "modes")] == ["warning"]


@pytest.mark.skipif(os.geteuid() != 0, reason="only root gives files away")
def test_a_file_of_another_user_beside_the_database(used: Path, look: Look) -> None:
    """As a command run by root may leave one: the daemon couldn't write it."""
    wal = used.parent / "state/dapd.sqlite-wal"
    wal.touch(mode=0o600)
    os.chown(wal, 65534, 65534)
    ((name, detail, remedy),) = failures(look())
    assert name == "modes"
    assert detail.startswith("belongs to ")
    assert remedy == f"`chown root: {wal}`"


def test_a_state_directory_that_is_gone(config: Path, look: Look) -> None:
    (config.parent / "state").rmdir()
    found = look()
    assert ("modes", "no such directory") in [each[:2] for each in failures(found)]


def test_e4_a_disk_below_its_mark(used: Path, look: Look) -> None:
    """The daemon uses the same mark."""
    used.write_text(used.read_text().replace("min_free_bytes = 0", f"min_free_bytes = {1 << 50}"))
    ((name, detail, remedy),) = failures(look())
    assert name == "disk"
    assert "the daemon refuses uploads and new jobs" in detail
    assert "min_free_bytes" in remedy


@pytest.mark.parametrize(("late", "level"), [(-60_000, "ok"), (60_000, "failure")])
def test_the_last_backup_may_be_two_days_old(used: Path, look: Look, late: int, level: str) -> None:
    """No backup yet is a warning; one that is older than two days is a failure."""
    assert [each["level"] for each in of(look(), "backup")] == ["warning"]
    age = int(BACKUP_AGE.total_seconds() * 1000) + late
    made = time.time_ns() // 1_000_000 - age
    note = last_backup_path(used.parent / "state/dapd.sqlite")
    note.write_bytes(msgspec.json.encode(LastBackup(made, made, "/a", 1, 1)))
    assert [each["level"] for each in of(look(), "backup")] == [level]


def test_a_database_of_another_program(used: Path, look: Look) -> None:
    (used.parent / "state/dapd.sqlite").write_bytes(b"")
    other = sqlite3.connect(used.parent / "state/dapd.sqlite")
    other.execute("CREATE TABLE theirs (x)")
    other.close()
    ((name, detail, _),) = failures(look())
    assert name == "database"
    assert "not a dapd database" in detail


def test_a_damaged_database(used: Path, look: Look) -> None:
    path = used.parent / "state/dapd.sqlite"
    path.write_bytes(b"not SQLite" * 1000)
    ((name, detail, remedy),) = failures(look())
    assert name == "database"
    assert detail.endswith("file is not a database")
    assert remedy.endswith("restore a backup")


def test_schemas_of_an_older_and_of_a_newer_dapd(used: Path, look: Look) -> None:
    """The daemon migrates the older one, doctor doesn't; this dapd can't read the newer one."""
    known = migrations()[-1].version
    change(used, "DELETE FROM schema_migrations WHERE version = ?", known)
    change(used, "INSERT OR REPLACE INTO schema_migrations VALUES (?, 'older', 0, 0)", known - 1)
    assert [each["level"] for each in of(look(), "database")] == ["warning"]
    newer = known + 1
    change(used, "INSERT INTO schema_migrations VALUES (?, 'newer', 0, ?)", newer, newer)
    ((name, detail, _),) = failures(look())
    assert name == "database"
    assert "newer than this dapd" in detail


def test_d6_a_clock_that_the_next_start_will_hold(used: Path, look: Look) -> None:
    """Because the daemon was stopped for a year."""
    change(used, SAFE_CLOCK, time.time_ns() // 1_000_000 - 366 * 86_400_000)
    ((name, detail, remedy),) = failures(look())
    assert name == "clock"
    assert "nothing expires" in detail
    assert remedy.endswith("`dapd clock accept`")


def test_certificates_of_the_listener(used: Path, look: Look, tmp_path: Path) -> None:
    """Good, about to expire, expired, of another key."""
    authority = Authority(tmp_path / "tls").issue()
    lines = "".join(f'{name} = "{path}"\n' for name, path in authority.server.items())
    used.write_text(used.read_text().replace("[server]\n", f"[server]\n{lines}"))
    assert of(look(), "certificate")[0]["level"] == "ok"
    now = datetime.now(UTC)
    authority.issue(expires=now + timedelta(days=20))
    found = look()
    assert failures(found) == []
    (soon,) = of(found, "certificate")
    assert (soon["level"], soon["remedy"]) == ("warning", "renew it, then `dapd reload`")
    authority.issue(expires=now - timedelta(days=1))
    ((name, detail, remedy),) = failures(look())
    assert (name, remedy) == ("certificate", "renew it, then `dapd reload`")
    assert "has expired" in detail
    authority.key.write_bytes(Authority(tmp_path / "other").issue().key.read_bytes())
    ((name, detail, _),) = failures(look())
    assert name == "certificate"
    assert "key values mismatch" in detail


def test_authorities_for_peers_that_can_not_be_read(used: Path, look: Look) -> None:
    """What [leader] peer_ca names."""
    used.write_text(used.read_text() + '[leader]\npeer_ca = "none.pem"\n')
    ((name, detail, _),) = failures(look())
    assert name == "certificate"
    assert detail.startswith(f"{used.parent / 'none.pem'}: ")


async def test_a_daemon_from_before_an_upgrade(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It runs on until it is restarted."""
    async with open_pair(tmp_path) as (pair, _):
        monkeypatch.setattr("dapd.cli.doctor.daemon.__version__", "99")
        config = pair.leader.context.config

        def look() -> list[Finding]:
            return list(daemon(tmp_path / "dapd.toml", config, 10))

        (found,) = await trio.to_thread.run_sync(look)
    assert (found.check, found.level) == ("daemon", "warning")
    assert found.detail.endswith("but 99 is installed")
    assert (found.remedy or "").startswith("restart it")


def test_a_service_that_does_not_start_with_the_machine(
    used: Path, look: Look, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """What systemd says of its unit; only for the system's own configuration."""
    program = tmp_path / "systemctl"
    program.write_text("#!/bin/sh\necho $SAYS\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    assert [each["level"] for each in of(look(), "service")] == ["skipped"]
    monkeypatch.setattr(service, "_BOOTED", tmp_path)
    assert [each["level"] for each in of(look(), "service")] == ["skipped"]
    monkeypatch.setattr("dapd.cli.doctor.daemon.SYSTEM_CONFIG", used)
    for says, level in (("enabled", "ok"), ("disabled", "warning")):
        monkeypatch.setenv("SAYS", says)
        assert [each["level"] for each in of(look(), "service")] == [level]
    found = look()
    assert of(found, "service")[0]["remedy"] == "`systemctl enable --now dapd`"
    assert "systemctl enable --now dapd" in of(found, "daemon")[0]["remedy"]


@pytest.mark.parametrize(
    ("raised", "level", "detail"),
    [
        (UsageError("a: wrong; fix it"), "failure", "a: wrong"),
        (DatastoreError("a: broken"), "failure", "a: broken"),
        (PermissionError(13, "Permission denied", "/a"), "skipped", "this user may not read it"),
        (FileNotFoundError(2, "No such file or directory", "/a"), "failure", "No such file"),
    ],
)
def test_whatever_a_check_raises_is_its_last_finding(
    raised: Exception, level: str, detail: str
) -> None:
    """Earlier findings stay, and the next check runs."""

    @check("one")
    def steps() -> Steps[int]:
        yield ok("a", "fine")
        raise raised

    first, last = steps()
    assert (first.check, first.level) == ("one", "ok")
    assert (last.check, last.level) == ("one", level)
    assert last.detail.startswith(detail)
    assert last.remedy


def test_nothing_that_a_peer_sends_reaches_the_terminal_as_a_command() -> None:
    """Control characters are escaped as in the log, lines joined, long texts cut."""

    @check("one")
    def steps() -> Steps[None]:
        yield ok("\x1b[2J", "a\r\nb\x00" + "c" * 1000)

    (found,) = steps()
    assert found.subject == r"\x1b[2J"
    assert found.detail.startswith(r"a b\x00c")
    assert len(found.detail) == 500


def test_i9_no_finding_tells_a_secret(with_task: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """No key and no token, even if it is wrong."""
    key = with_task.parent / "keys/sealing-1.key"
    task = tomllib.loads((with_task.parent / "task/helper.toml").read_text())
    secrets = [key.read_text(), task["vdaf_verify_key"], task["aggregator_auth_token"]]
    heard = ""
    for content in (secrets[0], f"{secrets[0]} and more", b64url_encode(bytes(32))):
        key.write_text(content)
        for form in ((), ("--json",)):
            run("--config", with_task, "doctor", *form)
            heard += "".join(capsys.readouterr())
    assert f"{key}" in heard, "the file without a valid key is named"
    assert not [secret for secret in secrets if secret in heard]


def test_secrets_that_do_not_open(with_task: Path, look: Look) -> None:
    """A task's secrets, and an HPKE key: each with the command that replaces them."""
    assert [each["level"] for each in of(look("--offline"), "task")] == ["ok"]
    change(with_task, "UPDATE tasks SET verify_key = zeroblob(80)")
    change(with_task, "UPDATE hpke_keypairs SET private_key = zeroblob(80)")
    keys, task = failures(look("--offline"))
    assert keys[0] == "database"
    assert "dapd key add --active" in keys[2]
    assert task[0] == "task"
    assert "dapd task rekey" in task[2]


@pytest.mark.parametrize(
    ("counted", "wrong"),
    [
        ({"aggregate_vdaf_verify_error": 2}, True),
        ({"aggregate_vdaf_verify_error": 2, "aggregate_finished": 1}, False),
        ({"aggregate_report_dropped": 2}, False),
        ({"upload_hpke_decrypt_error": 2}, False),
    ],
)
def test_a_task_of_which_no_report_was_ever_good(
    with_task: Path, look: Look, counted: dict[str, int], wrong: bool
) -> None:
    """One good report shows that the parties agree. Expiry proves nothing; only a Leader has
    uploads.
    """
    for name, value in counted.items():
        change(with_task, "INSERT INTO task_counters VALUES (1, ?, ?)", name, value)
    found = failures(look("--offline"))
    assert [each[0] for each in found] == ["task"] * wrong
    if wrong:
        assert "vdaf_verify_error: 2" in found[0][1]
        assert "verification keys differ" in found[0][1]
        assert "dapd task rekey FILE" in found[0][2]


def test_a_database_without_an_active_key_is_a_failure_once_a_daemon_has_run(
    used: Path, look: Look
) -> None:
    """The first start makes a key."""
    change(used, "UPDATE hpke_keypairs SET state = 'expired'")
    assert failures(look()) == []
    now = time.time_ns() // 1_000_000
    change(used, SAFE_CLOCK, now)
    ((name, _, remedy),) = failures(look())
    assert (name, remedy) == ("database", "`dapd key add --active`")


def test_a_restored_database_that_waits_to_be_accepted(
    with_task: Path, look: Look, tmp_path: Path
) -> None:
    """A warning until an operator accepts the closed batches."""
    (tmp_path / "copies").mkdir()
    assert run("--config", with_task, "backup", tmp_path / "copies") == 0
    assert [each["level"] for each in of(look("--offline"), "backup")] == ["ok"]
    (copy,) = (tmp_path / "copies").iterdir()
    assert run("--config", with_task, "restore", "--yes", copy) == 0
    ((level, remedy),) = [
        (each["level"], each["remedy"])
        for each in of(look("--offline"), "backup")
        if "a restore has closed batches of 1 task" in each["detail"]
    ]
    assert level == "warning"
    assert "dapd restore accept" in remedy
