"""What an operator types, sees, and gets when it goes wrong: real processes, real files."""

from __future__ import annotations

import os
import re
import shutil
import signal
import socket
import sqlite3
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import trio

from dapd.messages.common import b64url_encode
from dapd.server.sockets import reserved_port
from tests.processes.daemons import SECONDS, DaemonProcess, Wire, assert_calm, run_command, start

README = Path(__file__).parents[2] / "README.md"


async def init(directory: Path, role: str, port: int) -> Path:
    """``dapd init`` and quick settings; the configuration."""
    url = f"http://127.0.0.1:{port}/"
    status, _, stderr = await run_command("init", "--role", role, "--url", url, "--dir", directory)
    assert status == 0, stderr
    return directory / "dapd.toml"


def daemon_at(config: Path, nursery: trio.Nursery) -> DaemonProcess:
    """The process of a configuration that ``dapd init`` made."""
    return DaemonProcess(config.parent, nursery, Wire())


async def refusal(config: Path, status: int = 78) -> str:
    """What a daemon that can't start says: one line, no traceback. A restart would not help, unless
    its exit status is 75.
    """
    with trio.fail_after(SECONDS):
        found, stdout, stderr = await run_command("--config", config)
    assert found == status, stdout + stderr
    assert "Traceback" not in stdout + stderr
    (line,) = stderr.splitlines()
    assert line.startswith("dapd: ")
    return line


@pytest.fixture
def ports() -> Iterator[dict[str, int]]:
    """A Leader's and a Helper's, which nobody else has while nobody listens there."""
    with reserved_port() as leader, reserved_port() as helper:
        yield {"leader": leader, "helper": helper}


@pytest.fixture
async def config(tmp_path: Path, ports: dict[str, int]) -> Path:
    """A new Helper's configuration."""
    return await init(tmp_path / "helper", "helper", ports["helper"])


async def test_from_nothing_to_a_result_by_commands_alone(
    tmp_path: Path, ports: dict[str, int], nursery: trio.Nursery
) -> None:
    """The README's way: init, start, task new, task add while it runs, upload, collect, stop."""
    configs = {role: await init(tmp_path / role, role, port) for role, port in ports.items()}
    daemons = {role: daemon_at(config, nursery) for role, config in configs.items()}
    with trio.fail_after(SECONDS):
        await start(*daemons.values())
        status, _, stderr = await run_command(
            "task", "new", "--vdaf", "histogram:length=3", "--batch-mode", "time-interval",
            "--time-precision", 3600, "--min-batch-size", 3, "--out", tmp_path / "task",
            *(word for role, port in ports.items()
              for word in (f"--{role}", f"http://127.0.0.1:{port}/")),
        )  # fmt: skip
        assert status == 0, stderr
        for role, config in configs.items():
            file = tmp_path / "task" / f"{role}.toml"
            status, stdout, stderr = await run_command("--config", config, "task", "add", file)
            assert status == 0, stderr
            assert f"as its {role.capitalize()}" in stdout
        status, _, stderr = await run_command(
            "upload", "--task", tmp_path / "task/client.toml", stdin=b"0\n2\n2\n1\n"
        )
        assert status == 0, stderr
        today = int(time.time()) // 86_400 * 86_400
        everything = ("--interval", today - 86_400, 3 * 86_400, "--json")
        status, stdout, stderr = await run_command(
            "collect", "--task", tmp_path / "task/collector.toml", *everything
        )
        assert status == 0, stderr
        assert re.search(r"\[\s*1,\s*1,\s*2\s*\]", stdout), stdout
        for daemon in daemons.values():
            assert await daemon.stop() == 0
    assert_calm(list(daemons.values()))


async def test_i8_sigterm_ends_with_0_and_says_that_nothing_was_cut_short(
    config: Path, nursery: trio.Nursery
) -> None:
    """Stopping is orderly, and a second start finds all in order."""
    with trio.fail_after(SECONDS):
        for _ in range(2):
            daemon = daemon_at(config, nursery)
            assert await daemon.start()
            assert await daemon.stop() == 0
            last = daemon.records()[-1]
            assert (last["event"], last["cut_short"]) == ("stopped", False)


async def test_i8_sigint_stops_as_sigterm_does(config: Path, nursery: trio.Nursery) -> None:
    """Ctrl-C in a terminal is no crash."""
    daemon = daemon_at(config, nursery)
    with trio.fail_after(SECONDS):
        assert await daemon.start()
        assert daemon.process is not None
        daemon.process.send_signal(signal.SIGINT)
        assert await daemon.ended() == 0


async def test_e5_a_second_daemon_on_the_file_is_refused_and_told_who_has_it(
    config: Path, nursery: trio.Nursery
) -> None:
    """Two processes on one SQLite file would each forget what the other admitted."""
    daemon = daemon_at(config, nursery)
    with trio.fail_after(SECONDS):
        assert await daemon.start()
        assert daemon.process is not None
        line = await refusal(config, 75)
        assert f"process {daemon.process.pid}" in line
        assert "listening on 127.0.0.1:" in line
        assert await daemon.stop() == 0


async def test_a_taken_port_is_named(config: Path) -> None:
    """The line says which key to change."""
    text = config.read_text()
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        config.write_text(re.sub(r'listen = ".*"', f'listen = "127.0.0.1:{port}"', text))
        line = await refusal(config)
    assert f'[server] listen = "127.0.0.1:{port}"' in line
    assert "another program listens on this port" in line


async def test_a_wrong_config_names_file_and_key(config: Path) -> None:
    """A typo is found before anything is touched."""
    config.write_text(config.read_text() + "\n[leader]\nmax_jobsize = 5\n")
    line = await refusal(config)
    assert str(config) in line
    assert "max_jobsize" in line
    assert not (config.parent / "state" / "dapd.sqlite").exists()


async def test_a_missing_config_says_how_to_make_one(tmp_path: Path) -> None:
    """The first thing that anybody types."""
    assert "dapd init" in await refusal(tmp_path / "dapd.toml")


async def test_a_config_that_is_no_file_is_refused_like_any_other(tmp_path: Path) -> None:
    """With the status that keeps a service manager from trying again."""
    assert await refusal(tmp_path) == f"dapd: {tmp_path}: is a directory; name the file in it"


async def test_a_socket_in_a_place_that_can_not_be_is_named(config: Path) -> None:
    """Whether root would have to make the directory, or a user misses it."""
    config.write_text(config.read_text() + '\n[admin]\nsocket = "/proc/none/admin.sock"\n')
    line = await refusal(config)
    assert line.startswith("dapd: [admin] socket: /proc/none")


async def test_a_damaged_database_is_not_tried_again(config: Path) -> None:
    """It takes a person, with a backup."""
    database = config.parent / "state" / "dapd.sqlite"
    database.write_bytes(b"not a database" * 1000)
    line = await refusal(config)
    assert str(database) in line
    assert "restore a backup" in line


async def test_a_missing_sealing_key_file_is_named(config: Path) -> None:
    """Without it the database can't be read, so it is not quietly made anew."""
    key = config.parent / "keys" / "sealing-1.key"
    key.unlink()
    assert str(key) in await refusal(config)


async def test_a_sealing_key_that_others_may_read_is_refused(config: Path) -> None:
    """The line has the command that mends it."""
    key = config.parent / "keys" / "sealing-1.key"
    key.chmod(0o644)
    assert f"chmod 600 {key}" in await refusal(config)


async def test_f2_a_lost_sealing_key_is_named_by_its_id(
    config: Path, nursery: trio.Nursery
) -> None:
    """A database sealed with another key is not opened, and nothing in it is harmed."""
    with trio.fail_after(SECONDS):
        daemon = daemon_at(config, nursery)
        assert await daemon.start()
        assert await daemon.stop() == 0
    (used,) = daemon.read("SELECT key_id FROM sealing_keys")
    key = config.parent / "keys" / "sealing-1.key"
    kept = key.read_text()
    key.write_text(b64url_encode(os.urandom(32)))
    assert used[0].hex() in await refusal(config)
    key.write_text(kept)
    with trio.fail_after(SECONDS):
        assert await daemon.start()
        assert await daemon.stop() == 0


async def test_a_newer_database_is_refused(config: Path, nursery: trio.Nursery) -> None:
    """An older program may break what a newer one wrote."""
    with trio.fail_after(SECONDS):
        daemon = daemon_at(config, nursery)
        assert await daemon.start()
        assert await daemon.stop() == 0
    newer = sqlite3.connect(daemon.database, isolation_level=None)
    newer.execute("INSERT INTO schema_migrations VALUES (9999, 'from_the_future', 0, 9999)")
    newer.close()
    assert "newer than this dapd" in await refusal(config)


async def test_init_overwrites_nothing(config: Path) -> None:
    """A second ``dapd init`` in the same place says so and leaves config and key as they are."""
    before = {path: path.read_bytes() for path in config.parent.rglob("*") if path.is_file()}
    status, stdout, _ = await run_command(
        "init", "--role", "helper", "--url", "https://x.example/", "--dir", config.parent
    )
    assert status == 0
    assert stdout.count("left unchanged") == 3
    assert before == {p: p.read_bytes() for p in config.parent.rglob("*") if p.is_file()}


async def test_the_smallest_helper_of_the_readme_starts(
    config: Path, nursery: trio.Nursery
) -> None:
    """Under 15 lines, in the README, and what ``dapd init`` writes but for the address."""
    match = re.search(r"```toml\n(\[server\].*?)```", README.read_text(), re.DOTALL)
    assert match is not None
    smallest = match[1]
    assert len(smallest.splitlines()) < 15

    def without_address(text: str) -> list[str]:
        lines = [line.strip() for line in text.splitlines()]
        return [line for line in lines if line and not line.startswith(("#", "listen"))]

    assert without_address(config.read_text()) == without_address(smallest)
    config.write_text(re.sub(r'listen = ".*"', 'listen = "127.0.0.1:0"', smallest))
    daemon = daemon_at(config, nursery)
    with trio.fail_after(SECONDS):
        assert await daemon.start()
        assert await daemon.stop() == 0


async def test_a_command_refuses_a_database_that_it_would_have_to_migrate(
    config: Path, nursery: trio.Nursery
) -> None:
    """E5: beside a daemon a command never migrates."""
    daemon = daemon_at(config, nursery)
    with trio.fail_after(SECONDS):
        assert await daemon.start()
        older = sqlite3.connect(daemon.database, isolation_level=None)
        older.execute("DELETE FROM schema_migrations")
        older.close()
        status, _, stderr = await run_command("--config", config, "task", "list")
        assert status == 1
        assert "restart the daemon" in stderr
        assert await daemon.stop() == 0


async def test_the_daemon_does_not_start_without_its_state_directory(config: Path) -> None:
    """The line names the directory, not an errno alone."""
    shutil.rmtree(config.parent / "state")
    assert str(config.parent / "state") in await refusal(config, 75)
