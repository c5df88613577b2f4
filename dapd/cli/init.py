"""``dapd init``: make the files of a new Aggregator and install its systemd service.

Tasks come later (``dapd task``); the daemon makes the database when it first starts.
"""

from __future__ import annotations

import base64
import os
import pwd
import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Literal
from urllib.parse import urlsplit

import click

from dapd.errors import UsageError


@dataclass(frozen=True, slots=True)
class Layout:
    """Where the files go.

    ``database`` and ``socket`` are written into the configuration as they are; relative paths begin
    at its directory, and a socket of ``None`` is beside the database. ``metrics`` is the address of
    a service's metrics listener, on loopback; an ordinary user's daemon has none.
    """

    config: Path
    database: Path
    socket: Path | None = None
    metrics: str | None = None

    @property
    def key(self) -> Path:
        from dapd.config.minimal import SEALING_KEY

        return self.config.parent / SEALING_KEY

    @property
    def state(self) -> Path:
        return (self.config.parent / self.database).parent


def layout(directory: Path | None, *, root: bool) -> Layout:
    """Return the layout in ``directory``, or else a service's or an ordinary user's (ADR 0022)."""
    from dapd.cli.paths import CONFIG, SYSTEM_CONFIG, user_directory
    from dapd.config import DATABASE
    from dapd.config.minimal import METRICS_LISTEN

    if directory is not None:
        return Layout(directory / CONFIG, DATABASE)
    if root:
        return Layout(
            SYSTEM_CONFIG,
            Path("/var/lib/dapd", DATABASE.name),
            Path("/run/dapd/admin.sock"),
            METRICS_LISTEN,
        )
    config = user_directory(os.environ, "XDG_CONFIG_HOME", ".config")
    state = user_directory(os.environ, "XDG_STATE_HOME", ".local/state")
    return Layout(config / CONFIG, state / DATABASE.name)


@click.command()
@click.option(
    "--role",
    type=click.Choice(["leader", "helper"]),
    required=True,
    help="The role that most of its tasks will have; tasks of the other role work too.",
)
@click.option(
    "--url",
    required=True,
    help="The base URL under which clients and the other Aggregator reach this one.",
)
@click.option(
    "--listen",
    metavar="HOST:PORT",
    help="The address to listen on, for a reverse proxy.  [default: 127.0.0.1:8080, or --url's if "
    "that is on loopback]",
)
@click.option(
    "--dir",
    "directory",
    type=click.Path(file_okay=False, path_type=Path),
    help="Put all files into this directory and install no service.",
)
@click.option("--no-service", is_flag=True, help="Install no systemd service, even as root.")
def init(
    role: Literal["leader", "helper"],
    url: str,
    *,
    listen: str | None,
    directory: Path | None,
    no_service: bool,
) -> None:
    """Make a new Aggregator's configuration and sealing key.

    As root, the files are in /etc/dapd and /var/lib/dapd, and where systemd runs, the service
    dapd.service and its user dapd are installed. As another user, the files are in dapd/ below
    $XDG_CONFIG_HOME and $XDG_STATE_HOME.

    Existing files are never overwritten, so the command can be run again. Keep a copy of the
    sealing key away from the database: without the key the database can't be read.

    \b
    Example:
      sudo dapd init --role helper --url https://helper.example/dap
    """
    from dapd.cli import service
    from dapd.config.minimal import minimal_config

    _check_url(url)
    _check_listen(listen)
    root = os.geteuid() == 0
    where = layout(directory, root=root)
    serviced = root and directory is None and not no_service and service.is_booted()
    command = service.program() if serviced else None
    text = minimal_config(
        role,
        url,
        listen=listen,
        database=where.database,
        socket=where.socket,
        metrics=where.metrics,
    )
    os.umask(0o022)  # the service's user reads the configuration; private files set their own mode
    try:
        done = make(where, text)
        if command is not None:
            done |= service.install(command)
    except OSError as error:
        raise UsageError(
            f"{error.filename}: {error.strerror}; give another directory with --dir"
        ) from None
    if command is not None:
        service.announce()
        if done[where.state]:
            _give(where.state, service.USER)
    for path, made in done.items():
        click.echo(f"{'Made' if made else 'Exists already, left unchanged:'} {path}")
    if done.get(where.key):
        click.echo(f"Keep a copy of {where.key} elsewhere: without it the database can't be read.")
    for line in _next(where, role, usual=directory is None, serviced=serviced):
        click.echo(line)


def make(where: Layout, config: str) -> dict[Path, bool]:
    """Make the files that don't exist yet; return for each whether it was made.

    Raises ``OSError``, and ``UsageError`` if a database exists whose sealing key is missing.
    """
    wants_key = _wants_key(where)
    done = {where.config: not where.config.exists(), where.state: not where.state.is_dir()}
    for private in (where.state, where.key.parent):
        private.mkdir(mode=0o700, parents=True, exist_ok=True)
    if wants_key:
        write_sealing_key(where.key)
    if where.key.exists():
        done[where.key] = wants_key
    if done[where.config]:
        _create(where.config, config, 0o644)
    return done


def write_sealing_key(path: Path) -> bytes:
    """Write a new key to a file that only this user may read, and return the key.

    Raises ``OSError``, also if the file exists.
    """
    from dapd.config.keyfiles import SEALING_KEY_SIZE

    key = os.urandom(SEALING_KEY_SIZE)
    _create(path, base64.urlsafe_b64encode(key).decode().rstrip("=") + "\n", 0o600)
    return key


def _wants_key(where: Layout) -> bool:
    """Return whether a first sealing key must be made.

    Raises ``UsageError`` if a database exists and its key is missing: no new key would open it.
    """
    from dapd.config.loading import load

    database, keys = where.config.parent / where.database, [where.key.absolute()]
    if where.config.exists():
        loaded = load(where.config)
        database, keys = loaded.datastore.path, list(loaded.datastore.sealing_keys)
    missing = [key for key in keys if not key.exists()]
    if missing and database.exists():
        raise UsageError(
            f"{missing[0]}: this sealing key is missing, and {database} needs it; restore it from "
            "its backup"
        )
    return where.key.absolute() in missing


def _create(path: Path, text: str, mode: int) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
    with os.fdopen(descriptor, "w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())


def _give(directory: Path, user: str) -> None:
    found = pwd.getpwnam(user)
    os.chown(directory, found.pw_uid, found.pw_gid)


def _next(where: Layout, role: str, *, usual: bool, serviced: bool) -> list[str]:
    """Return the lines that list the next commands, as they work from this directory."""
    named = f"dapd --config {shlex.quote(str(where.config))}"
    start = "systemctl enable --now dapd" if serviced else named
    command = "dapd" if usual else named
    return [
        "Next:",
        f"  {start}",
        f"  {command} status",
        f"  {command} task add {role}.toml",
        f"  {command} doctor",
    ]


def _check_listen(listen: str | None) -> None:
    from dapd.config import Server

    try:
        _ = Server(listen=listen or Server().listen).address
    except ValueError:
        raise UsageError(
            f'--listen {listen}: not HOST:PORT; write it like "127.0.0.1:8080" or "[::]:8080"'
        ) from None


def _check_url(url: str) -> None:
    try:
        parts = urlsplit(url)
        valid = parts.scheme in ("http", "https") and parts.hostname and not parts.query
        _ = parts.port
    except ValueError:
        valid = None
    if not valid or not url.isascii() or any(character.isspace() for character in url):
        raise UsageError(
            f"--url {url}: not an http or https URL without a query; write it like "
            "https://helper.example/dap"
        )
