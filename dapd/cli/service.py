"""Install dapd's systemd unit and user, for ``dapd init``. Starting it is left to the operator."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import sysconfig
from importlib.resources import files
from pathlib import Path

from dapd.errors import UsageError

USER = "dapd"
_BOOTED = Path("/run/systemd/system")  # sd_booted(3)
_UNIT = Path("etc/systemd/system/dapd.service")
_PACKAGED = Path("usr/lib/systemd/system/dapd.service")
_USERS = Path("etc/sysusers.d/dapd.conf")
_PROGRAM_IN_UNIT = "/opt/dapd/bin/dapd"
_PLAIN = re.compile(r"[A-Za-z0-9/._+@-]+")
_HIDDEN = ("/home", "/root", "/run/user")  # from the unit, by ProtectHome=


def is_booted() -> bool:
    """Return whether this machine runs systemd."""
    return _BOOTED.is_dir()


def program() -> str:
    """Return the command line that runs this installation, for the unit.

    Raises ``UsageError`` if the service could not execute it.
    """
    script = Path(sysconfig.get_path("scripts"), "dapd")
    words = [str(script)] if os.access(script, os.X_OK) else [sys.executable, "-m", "dapd"]
    for path in (words[0], sys.executable, str(Path(sys.executable).resolve()), __file__):
        if not _PLAIN.fullmatch(path) or path.startswith(_HIDDEN):
            raise UsageError(
                f"{path}: a systemd service can't run a program there; install dapd elsewhere "
                "(`python3 -m venv /opt/dapd && /opt/dapd/bin/pip install dapd`, then run "
                "`/opt/dapd/bin/dapd init ...`), or give --no-service"
            )
    return " ".join(words)


def unit(command: str) -> str:
    """Return the text of the unit that runs ``command``."""
    return _text("dapd.service").replace(_PROGRAM_IN_UNIT, command)


def install(command: str, root: Path = Path("/")) -> dict[Path, bool]:
    """Write the files that don't exist below ``root``; return for each whether it was written."""
    if (root / _PACKAGED).exists():
        return {root / _PACKAGED: False}
    return {
        path: _write(path, text)
        for path, text in (
            (root / _USERS, _text("dapd.sysusers")),
            (root / _UNIT, unit(command)),
        )
    }


def announce() -> None:
    """Make systemd create the user and read the unit. Raises ``UsageError``."""
    _run("systemd-sysusers", str(Path("/", _USERS)))
    _run("systemctl", "daemon-reload")


def enabled() -> str:
    """Return the output of ``systemctl is-enabled``: "enabled" if it starts with the machine."""
    try:
        asked = ["systemctl", "is-enabled", _UNIT.name]
        done = subprocess.run(asked, capture_output=True, text=True, check=False)  # noqa: S603 - fixed
    except OSError as error:
        return str(error)
    return done.stdout.strip() or done.stderr.strip() or "unknown"


def _text(name: str) -> str:
    return files("dapd.cli").joinpath("systemd", name).read_text(encoding="utf-8")


def _write(path: Path, text: str) -> bool:
    if path.exists():
        return False
    path.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    path.chmod(0o644)
    return True


def _run(*command: str) -> None:
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603 - fixed
        problem = done.stderr.strip().replace("\n", "; ") if done.returncode else ""
    except OSError as error:
        problem = str(error)
    if problem:
        raise UsageError(f"{' '.join(command)}: {problem}; fix that and run `dapd init` again")
