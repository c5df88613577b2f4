"""The systemd unit: valid, hardened, and of the program that ``dapd init`` belongs to."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from dapd.cli import service
from dapd.errors import UsageError

ROOT = Path(__file__).parents[2]
needs_analyze = pytest.mark.skipif(
    shutil.which("systemd-analyze") is None, reason="no systemd-analyze: install systemd"
)
needs_sysusers = pytest.mark.skipif(
    shutil.which("systemd-sysusers") is None, reason="no systemd-sysusers: install systemd"
)


def told(*command: object) -> str:
    """What a program says that succeeds."""
    done = subprocess.run([*map(str, command)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


@pytest.fixture
def unit(tmp_path: Path) -> Path:
    """The installed unit, of a program that is here."""
    path = tmp_path / "dapd.service"
    path.write_text(service.unit(shutil.which("true") or "/bin/true"))
    return path


@needs_analyze
def test_systemd_takes_every_line_of_the_unit(unit: Path) -> None:
    """A key that systemd doesn't know is a warning, and protects nothing."""
    assert told("systemd-analyze", "verify", unit) == ""


@needs_analyze
def test_the_unit_is_hardened(unit: Path) -> None:
    """An exposure of at most 2.0, where 10 is an unprotected service."""
    said = told(
        "systemd-analyze", "security", "--offline=yes", "--threshold=20", "--no-pager", unit
    )
    assert "Overall exposure level" in said


def test_the_unit_names_the_program_that_init_belongs_to() -> None:
    """A virtual environment is found by its path alone; both commands are the same program's."""
    text = service.unit("/srv/my-dapd/bin/dapd")
    assert (
        re.findall(r"^Exec(?:Start|Reload)=(\S+)", text, re.MULTILINE)
        == ["/srv/my-dapd/bin/dapd"] * 2
    )
    assert "/opt" not in text


def test_a_program_that_the_service_could_not_see_is_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """``ProtectHome=`` hides /home and /root; a blank would end the path."""
    for path in ("/home/alice/venv/bin", "/root/venv/bin", "/srv/my dapd/bin"):
        monkeypatch.setattr("sysconfig.get_path", lambda _, path=path: path)
        monkeypatch.setattr(sys, "executable", f"{path}/python")
        with pytest.raises(UsageError, match=r"python3 -m venv /opt/dapd"):
            service.program()


def test_installing_again_overwrites_nothing(tmp_path: Path) -> None:
    """What an operator or a package has put there stays."""
    done = service.install("/opt/dapd/bin/dapd", tmp_path)
    assert set(done.values()) == {True}
    for path in done:
        path.write_text("mine")
    again = service.install("/opt/dapd/bin/dapd", tmp_path)
    assert again == dict.fromkeys(done, False)
    assert {path.read_text() for path in done} == {"mine"}
    packaged = tmp_path / "usr/lib/systemd/system/dapd.service"
    packaged.parent.mkdir(parents=True)
    packaged.touch()
    assert service.install("/opt/dapd/bin/dapd", tmp_path) == {packaged: False}


@needs_sysusers
def test_the_user_is_made(tmp_path: Path) -> None:
    """systemd-sysusers makes it from the file, with its home where the state is."""
    service.install("/opt/dapd/bin/dapd", tmp_path)
    told("systemd-sysusers", f"--root={tmp_path}")
    (line,) = [
        line for line in (tmp_path / "etc/passwd").read_text().splitlines() if line[:5] == "dapd:"
    ]
    assert line.split(":")[4:6] == ["DAP Aggregator", "/var/lib/dapd"]
    assert "dapd:" in (tmp_path / "etc/group").read_text()


def test_the_repository_shows_what_the_wheel_carries() -> None:
    """One text: ``packaging/`` only points to it."""
    for name in ("dapd.service", "dapd.sysusers"):
        assert (ROOT / "packaging" / name).resolve() == ROOT / "dapd/cli/systemd" / name
