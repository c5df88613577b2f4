"""Check the daemon: that it runs, what only it knows, and that systemd starts it at boot."""

from __future__ import annotations

import shlex
from dataclasses import dataclass
from pathlib import Path

import httpx2

from dapd import __version__
from dapd.admin.operation import Nothing
from dapd.admin.status import SHOW, StatusView
from dapd.admin.todo import only_the_daemon_knows
from dapd.advice import upkeep
from dapd.cli import service
from dapd.cli.clock import at_next_start
from dapd.cli.daemon import NoDaemon, call
from dapd.cli.doctor.database import Contents
from dapd.cli.doctor.findings import Steps, check, failure, is_there, ok, skipped, warning
from dapd.cli.paths import SYSTEM_CONFIG
from dapd.config import Config
from dapd.errors import DatastoreError
from dapd.wording import duration


@dataclass(frozen=True, slots=True)
class Running:
    """The daemon's answer; ``status`` is ``None`` if no daemon runs."""

    status: StatusView | None


@check("daemon")
def daemon(path: Path, config: Config, seconds: float) -> Steps[Running | None]:
    """Ask the daemon for its status, and wait this long for the answer."""
    try:
        status = call(config, SHOW, Nothing(), seconds=seconds)
    except NoDaemon:
        if is_there(config.datastore.path):
            yield failure(config.admin_socket, "no daemon runs", f"start it: `{start(path)}`")
        else:
            yield warning(config.admin_socket, "no daemon has run yet", f"next: `{start(path)}`")
        return Running(None)
    except DatastoreError as error:
        if not isinstance(error.__cause__, httpx2.HTTPError):
            raise
        yield failure(
            config.admin_socket,
            f"the daemon doesn't answer within {seconds:g} s",
            "see its log; if it hangs, restart it",
        )
        return None
    if status.version == __version__:
        up = duration(int(1000 * status.uptime_seconds))
        yield ok(f"process {status.pid}", f"version {status.version}, up {up}")
    else:
        yield warning(
            f"process {status.pid}",
            f"runs version {status.version}, but {__version__} is installed",
            f"restart it, or use the `dapd` of version {status.version}",
        )
    for advice in only_the_daemon_knows(status):
        yield warning(advice.subject, advice.what, advice.remedy)
    return Running(status)


@check("service")
def unit(path: Path) -> Steps[None]:
    """Check that systemd starts the daemon at boot."""
    if not service.is_booted():
        yield skipped("dapd.service", "systemd doesn't run this machine")
    elif path != SYSTEM_CONFIG:
        yield skipped("dapd.service", f"the service uses {SYSTEM_CONFIG}, not this configuration")
    elif (state := service.enabled()) == "enabled":
        yield ok("dapd.service", "starts with the machine")
    else:
        yield warning(
            "dapd.service",
            f"doesn't start with the machine: it is {state}",
            "`systemctl enable --now dapd`",
        )


def start(path: Path) -> str:
    """Return the command that starts the daemon."""
    if service.is_booted() and path == SYSTEM_CONFIG:
        return "systemctl enable --now dapd"
    return f"dapd --config {shlex.quote(str(path))}"


@check("clock")
def safe_clock(config: Config, running: Running | None, contents: Contents | None) -> Steps[None]:
    """Check that the safe clock isn't held."""
    if running is not None and running.status is not None:
        held = running.status.clock.held
    elif contents is not None:
        held = at_next_start(config, contents.clock).held
    else:
        yield skipped("", "needs the daemon or its database")
        return
    advice = upkeep.clock(held)
    if advice is None:
        yield ok("", "followed")
    else:
        yield failure("", advice.problem, advice.remedy)
