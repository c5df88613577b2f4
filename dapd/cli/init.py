"""``dapd init``: the files that a new Aggregator needs. Left out: tasks, and the database itself,
which the daemon makes when it first starts.
"""

from __future__ import annotations

import base64
import os
import shlex
from pathlib import Path
from typing import Literal
from urllib.parse import urlsplit

import click

from dapd.errors import UsageError

_CONFIG, _KEY, _STATE = "dapd.toml", "keys/sealing-1.key", "state"


@click.command()
@click.option("--role", type=click.Choice(["leader", "helper"]), required=True)
@click.option("--url", required=True, help="Where others reach this Aggregator.")
@click.option(
    "--dir",
    "directory",
    type=click.Path(file_okay=False, path_type=Path),
    default=Path(),
    help="Where to put the files.  [default: here]",
)
def init(role: Literal["leader", "helper"], url: str, directory: Path) -> None:
    """Make the configuration, the sealing key and the state directory of a new Aggregator.

    Nothing that exists is overwritten. Keep a copy of the sealing key away from the database:
    without it the database can't be read.

    \b
    Example:
      dapd init --role helper --url https://helper.example/dap --dir /etc/dapd
    """
    from dapd.config import minimal_config

    _check_url(url)
    config, key, state = directory / _CONFIG, directory / _KEY, directory / _STATE
    for path in (config, key):
        if path.exists():
            raise UsageError(f"{path}: exists, and is left as it is; choose another --dir")
    try:
        for private in (key.parent, state):
            private.mkdir(mode=0o700, parents=True, exist_ok=True)
        write_sealing_key(key)
        _create(config, minimal_config(role, url), 0o644)
    except OSError as error:
        raise UsageError(f"{error.filename}: {error.strerror}; choose another --dir") from None
    click.echo(f"Made {config}, {key} (keep a copy elsewhere) and {state}/.")
    click.echo(f"Next: dapd --config {shlex.quote(str(config))}")


def write_sealing_key(path: Path) -> bytes:
    """Make a new key that only this user may read. Raises ``OSError``, also if the file exists."""
    from dapd.config import SEALING_KEY_SIZE

    key = os.urandom(SEALING_KEY_SIZE)
    _create(path, base64.urlsafe_b64encode(key).decode().rstrip("=") + "\n", 0o600)
    return key


def _create(path: Path, text: str, mode: int) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
    with os.fdopen(descriptor, "w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())


def _check_url(url: str) -> None:
    try:
        parts = urlsplit(url)
        valid = parts.scheme in ("http", "https") and parts.hostname and not parts.query
        _ = parts.port
    except ValueError:
        valid = None
    if not valid or not url.isascii() or any(character.isspace() for character in url):
        raise UsageError(f"--url {url}: no base URL; write one such as https://helper.example/dap")
