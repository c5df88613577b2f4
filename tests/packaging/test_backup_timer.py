"""The nightly backup by systemd: valid units, and a command that dapd has."""

from __future__ import annotations

import re
import shutil
import sys
from pathlib import Path

from tests.packaging.test_unit import ROOT, needs_analyze, told

UNITS = ("dapd-backup.service", "dapd-backup.timer")
_PROGRAM = re.compile(r"^ExecStart=(\S+)", re.MULTILINE)


def text(unit: str) -> str:
    return (ROOT / "packaging" / unit).read_text()


@needs_analyze
def test_systemd_takes_every_line_of_the_timer_and_its_service(tmp_path: Path) -> None:
    """As installed beside each other, of a program that is here."""
    for unit in UNITS:
        here = shutil.which("true") or "/bin/true"
        (tmp_path / unit).write_text(_PROGRAM.sub(f"ExecStart={here}", text(unit)))
    assert told("systemd-analyze", "verify", *(tmp_path / unit for unit in UNITS)) == ""


def test_the_service_makes_a_backup(tmp_path: Path) -> None:
    """Its command, with the places of an Aggregator that is here."""
    etc, backups = tmp_path / "etc", tmp_path / "backups"
    config = etc / "dapd.toml"
    dapd = (sys.executable, "-m", "dapd")
    told(*dapd, "init", "--role", "helper", "--url", "https://helper.example/", "--dir", etc)
    told(*dapd, "--config", config, "task", "list")  # makes the database
    backups.mkdir()
    here = {"/etc/dapd/dapd.toml": config, "/var/backups/dapd": backups}
    [command] = re.findall(r"^ExecStart=/opt/dapd/bin/dapd (.*)$", text(UNITS[0]), re.MULTILINE)
    assert all(place in command.split() for place in here)
    told(*dapd, *(here.get(word, word) for word in command.split()))
    assert len(list(backups.glob("dapd-*.sqlite"))) == 1
