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
from dapd.config import load, read_sealing_keys

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
def test_init_overwrites_nothing(
    tmp_path: Path, existing: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """A sealing key that were overwritten would lose the whole database."""
    path = tmp_path / existing
    path.parent.mkdir(exist_ok=True)
    path.write_text("mine")
    assert run(*HELPER, "--dir", str(tmp_path)) == 2
    assert path.read_text() == "mine"
    assert sorted(p.name for p in tmp_path.rglob("*") if p.is_file()) == [path.name]
    assert capsys.readouterr().err.startswith(f"dapd: {path}: exists")


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
    """click's own errors keep their exit code."""
    assert run("colect") == 2
    assert "No such command" in capsys.readouterr().err


def test_help_loads_nothing_heavy() -> None:
    """``dapd --help`` answers at once: no event loop, no HTTP, no extension."""
    program = (
        "import sys; from dapd.cli import _run; _run(['--help']);"
        "print({'trio', 'httpx2', 'quart', 'rich', 'dapd._native', 'msgspec'} & set(sys.modules))"
    )
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, check=True)
    assert result.stdout.decode().endswith("set()\n")
