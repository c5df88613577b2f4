"""The daemon as a service manager sees it: a process, a notify socket, exit statuses, users."""

from __future__ import annotations

import json
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from subprocess import PIPE, STDOUT

import pytest
import structlog
import trio

import dapd
from tests.process.test_notify import Manager
from tests.processes.daemons import SECONDS, DaemonProcess, Wire, run_command

NOBODY = 65534
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")


@pytest.fixture
def manager(monkeypatch: pytest.MonkeyPatch) -> Iterator[Manager]:
    """A service manager, of whose socket the processes started here know."""
    address = f"@dapd-test-{os.getpid()}"
    monkeypatch.setenv("NOTIFY_SOCKET", address)
    monkeypatch.setenv("WATCHDOG_USEC", "300000")
    manager = Manager(address)
    yield manager
    manager.close()


@pytest.fixture
def daemon(tmp_path: Path, nursery: trio.Nursery) -> DaemonProcess:
    made = DaemonProcess(tmp_path / "dapd", nursery, Wire())
    made.make()
    return made


async def until(manager: Manager, line: str) -> list[list[str]]:
    """All messages up to the first one with ``line``."""
    messages = [await trio.to_thread.run_sync(manager.heard)]
    while line not in messages[-1]:
        messages.append(await trio.to_thread.run_sync(manager.heard))
    return messages


async def test_the_manager_hears_the_whole_life_of_a_daemon(
    daemon: DaemonProcess, manager: Manager
) -> None:
    """Time for the opening is asked for first; ready is said when HTTP is answered; then the event
    loop beats; the end says for how long it may last.
    """
    with trio.fail_after(SECONDS):
        daemon.nursery.start_soon(daemon.start)
        before = await until(manager, "READY=1")
        assert before[0][0].startswith("STATUS=opening the database")
        assert before[0][1].startswith("EXTEND_TIMEOUT_USEC=")
        assert before[-1] == [
            "READY=1",
            "STATUS=tasks: none yet; unfinished jobs: 0; reports in no job yet: 0",
        ]
        address = next(r for r in daemon.records() if r["event"] == "listening")
        stream = await trio.open_tcp_stream(address["host"], address["port"])
        await stream.send_all(b"GET /hpke_config HTTP/1.1\r\nHost: dapd\r\n\r\n")
        assert (await stream.receive_some()).startswith(b"HTTP/1.1 200 ")
        await stream.aclose()
        for _ in range(3):
            await until(manager, "WATCHDOG=1")
        assert await daemon.stop() == 0
        end = (await until(manager, "STOPPING=1"))[-1]
        assert end[2] == "EXTEND_TIMEOUT_USEC=50000000", "20 s of grace, 30 to close"


async def test_what_only_a_person_can_mend_exits_78(daemon: DaemonProcess) -> None:
    """The unit restarts all else: a disk that was full, a lock that a command held."""
    text = daemon.config.read_text()
    with trio.fail_after(SECONDS):
        daemon.config.write_text(text + "\n[leader]\nmax_jobsize = 1\n")
        assert (await run_command("--config", daemon.config))[0] == 78
        daemon.config.write_text(text)
        other = sqlite3.connect(daemon.database, isolation_level=None)
        other.execute("CREATE TABLE of_another_program (x)")
        other.close()
        status, _, stderr = await run_command("--config", daemon.config)
        assert status == 78
        assert "not a dapd database" in stderr
        daemon.database.unlink()
        daemon.config.write_text(text.replace("127.0.0.1:0", "192.0.2.1:80"))
        assert (await run_command("--config", daemon.config))[0] == 75, "no network yet"


async def test_the_journal_takes_a_refusal_for_an_error(
    daemon: DaemonProcess, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """``journalctl -p err`` shows why the daemon did not start; elsewhere the line is as it is."""
    daemon.config.write_text("[server\n")
    said = []
    for journal in (True, False):
        with (tmp_path / "stderr").open("w+") as stderr:
            found = os.fstat(stderr.fileno())
            stream = f"{found.st_dev}:{found.st_ino + (not journal)}"
            monkeypatch.setenv("JOURNAL_STREAM", stream)
            command = [sys.executable, "-m", "dapd", "--config", str(daemon.config)]
            done = await trio.run_process(command, stderr=stderr, check=False)
            assert done.returncode == 78
            stderr.seek(0)
            said.append(stderr.read())
    assert said[0] == f"<3>{said[1]}"
    assert said[1].startswith("dapd: ")


async def test_a_daemon_leaves_no_core(daemon: DaemonProcess) -> None:
    """A core dump would hold keys and input shares."""
    with trio.fail_after(SECONDS):
        assert await daemon.start()
        assert daemon.process is not None
        limits = Path(f"/proc/{daemon.process.pid}/limits").read_text()
        (core,) = [line for line in limits.splitlines() if line.startswith("Max core file size")]
        assert core.split()[4:6] == ["0", "0"]
        assert await daemon.stop() == 0


def python_for_all() -> str | None:
    """A Python that every user may run, and that can load what is installed here."""
    version = f"import sys; sys.exit(sys.version_info[:2] != {tuple(sys.version_info[:2])})"
    for path in (sys.executable, "/usr/bin/python3"):
        with suppress(OSError):
            done = subprocess.run(
                [path, "-c", version], user=NOBODY, group=NOBODY, extra_groups=[], check=False
            )
            if done.returncode == 0 and Path(structlog.__file__).stat().st_mode & 0o004:
                return path
    return None


@pytest.fixture
def service(daemon: DaemonProcess, monkeypatch: pytest.MonkeyPatch) -> Iterator[DaemonProcess]:
    """Laid out as root does: keys that only root may read, state that is another user's."""
    python = python_for_all()
    if python is None:
        pytest.skip("no Python here that other users than root may run")
    monkeypatch.setattr(sys, "executable", python)
    installed = [Path(dapd.__file__).parents[1], Path(structlog.__file__).parents[1]]
    monkeypatch.setenv("PYTHONPATH", ":".join(map(str, installed)))
    place = Path(tempfile.mkdtemp(prefix="dapd-test-"))
    place.chmod(0o755)
    shutil.move(daemon.directory, place / "dapd")
    daemon.directory = place / "dapd"
    daemon.directory.chmod(0o755)
    (daemon.directory / "keys").chmod(0o700)
    os.chown(daemon.directory / "state", NOBODY, NOBODY)
    yield daemon
    shutil.rmtree(place)


def owners(daemon: DaemonProcess) -> set[int]:
    """Who owns the files of the state directory."""
    return {path.lstat().st_uid for path in (daemon.directory / "state").iterdir()}


@needs_root
async def test_root_leaves_no_file_of_its_own_in_the_state_directory(
    service: DaemonProcess, tmp_path: Path
) -> None:
    """The daemon's user could not write to it; what only root may read is read before."""
    backups = service.directory / "backups"
    backups.mkdir()
    os.chown(backups, NOBODY, NOBODY)
    for arguments in (
        ("task", "list"), ("key", "list"), ("clock", "accept"), ("clock", "show"),
        ("datastore", "keys"), ("datastore", "check"), ("backup", backups), ("restore", "status"),
    ):  # fmt: skip
        status, _, stderr = await run_command("--config", service.config, *arguments)
        assert status == 0, stderr
        assert owners(service) == {NOBODY}, arguments
    (copy,) = backups.iterdir()
    assert copy.stat().st_uid == NOBODY
    status, _, stderr = await run_command("--config", service.config, "restore", "--yes", copy)
    assert status == 0, stderr
    assert owners(service) == {NOBODY}
    private = tmp_path / "copy.sqlite"
    shutil.copy(copy, private)
    status, _, stderr = await run_command("--config", service.config, "restore", "--yes", private)
    assert status == 2
    assert "user nobody, which owns the database, must be able" in stderr


@needs_root
async def test_roots_daemon_runs_as_the_states_owner(service: DaemonProcess) -> None:
    """Started by hand, it is no other than the service's: user, groups, files, socket."""
    socket_path = service.directory / "run/admin.sock"
    service.config.write_text(service.config.read_text() + '[admin]\nsocket = "run/admin.sock"\n')
    with trio.fail_after(SECONDS):
        assert await service.start()
        assert service.process is not None
        status = Path(f"/proc/{service.process.pid}/status").read_text()
        fields = dict(line.split(":\t", 1) for line in status.splitlines() if ":\t" in line)
        assert set(fields["Uid"].split()) == set(fields["Gid"].split()) == {str(NOBODY)}
        assert "0" not in fields["Groups"].split()
        assert owners(service) == {NOBODY}
        assert socket_path.parent.stat().st_uid == NOBODY
        assert (await run_command("--config", service.config, "clock", "accept"))[0] == 0
        assert await service.stop() == 0


@needs_root
async def test_a_service_reads_its_keys_as_credentials(
    service: DaemonProcess, monkeypatch: pytest.MonkeyPatch, nursery: trio.Nursery
) -> None:
    """As systemd passes them: ``keys_NAME``, owned by root, with an access list for the service's
    user that shows as a group bit; here it is that group's.
    """
    key = service.directory / "keys/sealing-1.key"
    credential = service.directory / "credentials" / f"keys_{key.name}"
    credential.parent.mkdir(mode=0o755)
    shutil.copy(key, credential)
    credential.chmod(0o440)
    os.chown(credential, 0, NOBODY)
    command = [sys.executable, "-m", "dapd", "--config", str(service.config)]
    with trio.fail_after(SECONDS):
        refused = await trio.run_process(
            command, capture_stderr=True, check=False, user=NOBODY, group=NOBODY, extra_groups=[]
        )
        assert refused.returncode == 78
        assert f"{key}: Permission denied; run this as root" in refused.stderr.decode()
        monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(credential.parents[1] / "none"))
        refused = await trio.run_process(
            command, capture_stderr=True, check=False, user=NOBODY, group=NOBODY, extra_groups=[]
        )
        assert "Permission denied; put it into the directory of the unit" in refused.stderr.decode()
        monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(credential.parent))
        process = await trio.lowlevel.open_process(
            command, stdout=PIPE, stderr=STDOUT, user=NOBODY, group=NOBODY, extra_groups=[]
        )
        said = b""
        assert process.stdout is not None
        async for piece in process.stdout:
            said += piece
            if b'"event":"listening"' in piece:
                process.send_signal(signal.SIGTERM)
        assert await process.wait() == 0, said
        assert b'"event":"listening"' in said


async def doctor(service: DaemonProcess, uid: int) -> tuple[int, list[dict[str, str]]]:
    """``dapd doctor`` as this user: the exit status, and what it finds."""
    command = [sys.executable, "-m", "dapd", "--config", str(service.config), "doctor", "--json"]
    done = await trio.run_process(
        command, capture_stdout=True, check=False, user=uid, group=uid, extra_groups=[]
    )
    return done.returncode, json.loads(done.stdout)["findings"]


@needs_root
async def test_the_doctor_looks_as_whoever_it_is_and_changes_nothing(
    service: DaemonProcess,
) -> None:
    """Root reads the keys and goes on as the state's owner; that one can't read the keys; another
    user is told what can't be looked at. None of that is a failure of the daemon's.
    """
    state = service.directory / "state"
    with trio.fail_after(SECONDS):
        assert await service.start()
        before = sorted(state.iterdir())
        for uid, mode, unseen in (
            (0, 0o700, set()),
            (NOBODY, 0o700, {"sealing_keys"}),
            (NOBODY - 1, 0o755, {"sealing_keys", "daemon", "owner", "database"}),
            (NOBODY - 1, 0o700, {"sealing_keys", "daemon", "owner", "database", "backup", "modes"}),
        ):
            state.chmod(mode)
            status, found = await doctor(service, uid)
            assert status == 0, found
            looked_at = {"sealing_keys", "daemon", "owner", "database", "backup", "modes"}
            skipped = {each["check"] for each in found if each["level"] == "skipped"}
            assert skipped & looked_at == unseen
            assert sorted(state.iterdir()) == before
            assert owners(service) == {NOBODY}
        assert await service.stop() == 0
