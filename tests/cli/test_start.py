"""What a process imports before it does anything: most of the time that its start takes."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

DAEMON_ALONE = {"hypercorn", "jinja2", "prometheus_client", "quart", "structlog", "werkzeug"}
"""What only a daemon needs."""
DRAWING = {"pygments", "rich"}
"""What only a command that draws needs."""


def imported(*arguments: object) -> set[str]:
    """The packages that ``dapd ARGUMENTS`` imports, whatever becomes of it."""
    command = [sys.executable, "-X", "importtime", "-m", "dapd", *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert "Traceback" not in done.stderr
    names = {
        line.rpartition("|")[2].strip().partition(".")[0]
        for line in done.stderr.splitlines()
        if line.startswith("import time:")
    }
    assert "click" in names
    return names


def test_help_imports_no_more_than_click() -> None:
    """It lists all commands without what any of them needs."""
    heavy = {"asyncio", "httpx2", "msgspec", "sqlite3", "ssl", "trio"}
    assert not imported("--help") & (DAEMON_ALONE | DRAWING | heavy)


def test_a_command_on_the_datastore_imports_no_http(config: Path) -> None:
    """Neither a server nor a client."""
    names = imported("--config", config, "task", "list")
    assert "sqlite3" in names
    assert not names & (DAEMON_ALONE | DRAWING | {"asyncio", "httpx2"})


def test_the_client_imports_no_daemon(tmp_path: Path) -> None:
    """`dapd upload` asks Aggregators, and is none."""
    names = imported("upload", "--task", tmp_path / "none.toml", 1)
    assert "httpx2" in names
    assert not names & (DAEMON_ALONE | DRAWING | {"asyncio", "sqlite3"})


def test_the_daemon_imports_nothing_to_draw_with(tmp_path: Path) -> None:
    """structlog asks for rich, is told that there is none, and so goes without what that takes."""
    names = imported("--config", tmp_path / "none.toml")
    assert "quart" in names
    assert "pygments" not in names
