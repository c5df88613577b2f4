"""``dapd init`` and the frame of the command line."""

from __future__ import annotations

import stat
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import dapd
from dapd.cli import main
from dapd.cli.init import Layout, layout, make
from dapd.cli.paths import find_config
from dapd.config.keyfiles import read_sealing_keys
from dapd.config.loading import load
from dapd.config.minimal import minimal_config

HELPER = ["init", "--role", "helper", "--url", "https://helper.example/dap"]


def run(*arguments: str) -> int:
    with pytest.raises(SystemExit) as exit_:
        main(list(arguments))
    assert isinstance(exit_.value.code, int)
    return exit_.value.code


@pytest.mark.parametrize("role", ["helper", "leader"])
def test_init_makes_what_the_daemon_reads(
    tmp_path: Path, role: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """The configuration loads, the key is 32 bytes, and the next command is printed."""
    where = tmp_path / "new place"
    assert run("init", "--role", role, "--url", "https://a.example/dap", "--dir", str(where)) == 0
    config = load(where / "dapd.toml")
    [key] = read_sealing_keys(config)
    assert len(key) == 32
    assert stat.S_IMODE((where / "keys/sealing-1.key").stat().st_mode) == 0o600
    assert stat.S_IMODE((where / "state").stat().st_mode) == 0o700
    assert config.datastore.path.parent == where / "state"
    assert f"dapd --config '{where / 'dapd.toml'}'" in capsys.readouterr().out


def test_the_smallest_async_helper_is_under_15_lines(tmp_path: Path) -> None:
    """What ``dapd init`` writes is what an operator has to understand."""
    assert run(*HELPER, "--dir", str(tmp_path)) == 0
    assert len((tmp_path / "dapd.toml").read_text().splitlines()) < 15
    assert load(tmp_path / "dapd.toml").helper.mode == "async"


@pytest.mark.parametrize("existing", ["dapd.toml", "keys/sealing-1.key"])
def test_init_again_makes_what_is_missing_and_overwrites_nothing(
    tmp_path: Path, existing: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """A sealing key that were overwritten would lose the whole database."""
    assert run(*HELPER, "--dir", str(tmp_path)) == 0
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    missing = ({"dapd.toml", "keys/sealing-1.key"} - {existing}).pop()
    (tmp_path / missing).unlink()
    capsys.readouterr()
    assert run(*HELPER, "--dir", str(tmp_path)) == 0
    said = capsys.readouterr().out
    assert f"Exists already, left unchanged: {tmp_path / existing}\n" in said
    assert f"Made {tmp_path / missing}\n" in said
    assert (tmp_path / existing).read_bytes() == before[tmp_path / existing]
    assert read_sealing_keys(load(tmp_path / "dapd.toml"))


def test_f2_init_makes_no_new_key_for_a_database_that_has_one(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The new one would open nothing, and look as if all were well."""
    assert run(*HELPER, "--dir", str(tmp_path)) == 0
    (tmp_path / "state/dapd.sqlite").touch()
    key = tmp_path / "keys/sealing-1.key"
    key.unlink()
    for config in ("there", "missing"):
        assert run(*HELPER, "--dir", str(tmp_path)) == 2
        assert f"{key}: this sealing key is missing" in capsys.readouterr().err
        assert not key.exists(), f"configuration {config}"
        (tmp_path / "dapd.toml").unlink(missing_ok=True)


def test_init_follows_the_configuration_that_is_there(tmp_path: Path) -> None:
    """A first key that was replaced and taken out of the list is not made again."""
    assert run(*HELPER, "--dir", str(tmp_path)) == 0
    config, key = tmp_path / "dapd.toml", tmp_path / "keys/sealing-1.key"
    config.write_text(config.read_text().replace("sealing-1", "sealing-2"))
    key.rename(key.with_name("sealing-2.key"))
    assert run(*HELPER, "--dir", str(tmp_path)) == 0
    assert not key.exists()


def test_a_user_has_its_own_places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """XDG's; the database's is written down, whatever the environment of the daemon will be."""
    monkeypatch.setattr("os.geteuid", lambda: 1000)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    assert run(*HELPER, "--listen", "[::]:8080") == 0
    monkeypatch.setenv("XDG_STATE_HOME", "/elsewhere")
    config = load(find_config(None))
    assert config.datastore.path == tmp_path / "state/dapd/dapd.sqlite"
    assert config.admin_socket.parent == tmp_path / "state/dapd"
    assert config.server.address == ("::", 8080)
    assert config.admin.address is None, "a user's daemon opens no second port"


def test_a_service_has_the_systems_places(tmp_path: Path) -> None:
    """What root's `dapd init` makes, below another root."""
    usual = layout(None, root=True)
    assert usual == Layout(
        Path("/etc/dapd/dapd.toml"),
        Path("/var/lib/dapd/dapd.sqlite"),
        Path("/run/dapd/admin.sock"),
        "127.0.0.1:9464",
    )
    where = Layout(tmp_path / "etc/dapd/dapd.toml", tmp_path / "state/dapd.sqlite", usual.socket)
    text = minimal_config(
        "helper",
        "https://a/",
        database=where.database,
        socket=where.socket,
        metrics=usual.metrics,
    )
    assert set(make(where, text).values()) == {True}
    assert stat.S_IMODE((tmp_path / "etc/dapd/keys").stat().st_mode) == 0o700
    config = load(where.config)
    assert config.datastore.path == where.database
    assert config.admin_socket == Path("/run/dapd/admin.sock")
    assert config.admin.address == ("127.0.0.1", 9464)
    assert set(make(where, text).values()) == {False}


def test_an_address_that_is_none_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Before anything is made."""
    assert run(*HELPER, "--listen", "8080", "--dir", str(tmp_path)) == 2
    assert "--listen 8080" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "url", ["helper.example", "ftp://a", "https://", "http://a:x/", "https://ä"]
)
def test_init_refuses_what_is_no_url(
    tmp_path: Path, url: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """One line that says what to write, and nothing made."""
    assert run("init", "--role", "helper", "--url", url, "--dir", str(tmp_path)) == 2
    assert len(capsys.readouterr().err.splitlines()) == 1
    assert not list(tmp_path.iterdir())


def test_a_directory_that_cannot_be_made_is_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The operator's mistakes never end in a traceback."""
    (tmp_path / "file").touch()
    assert run(*HELPER, "--dir", str(tmp_path / "file" / "below")) == 2
    assert len(capsys.readouterr().err.splitlines()) == 1


def test_the_version_stands_in_one_place_for_each_tool() -> None:
    """The package, the wheel and the crate agree."""
    root = Path(dapd.__file__).parent.parent
    project = tomllib.loads((root / "pyproject.toml").read_text())["project"]
    crate = tomllib.loads((root / "native/Cargo.toml").read_text())["package"]
    assert dapd.__version__ == project["version"] == crate["version"]


def test_help_and_version_answer(capsys: pytest.CaptureFixture[str]) -> None:
    """``dapd`` alone helps; every command is listed."""
    assert run() == 0
    help_text = capsys.readouterr().out
    for command in ("init", "task", "upload", "collect", "demo"):
        assert command in help_text
    assert run("--version") == 0
    assert capsys.readouterr().out.split() == ["dapd", dapd.__version__]


def test_an_unknown_command_is_a_usage_error(capsys: pytest.CaptureFixture[str]) -> None:
    """click's own errors keep their exit code, and name what was meant."""
    assert run("colect") == 2
    assert "No such command 'colect'. Did you mean 'collect'?" in capsys.readouterr().err


def test_help_loads_nothing_heavy() -> None:
    """``dapd --help`` answers at once: no event loop, no HTTP, no extension."""
    program = (
        "import sys; from dapd.cli import _run; _run(['--help']);"
        "print({'trio', 'httpx2', 'quart', 'rich', 'dapd._native', 'msgspec'} & set(sys.modules))"
    )
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, check=True)
    assert result.stdout.decode().endswith("set()\n")
