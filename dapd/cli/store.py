"""Open a daemon's datastore for a command, whether or not the daemon runs (rule E5).

Changes that a running daemon must make itself go through its admin socket (``.daemon``).
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import click

from dapd.cli.output import load_config

if TYPE_CHECKING:
    from dapd.config import Config
    from dapd.crypto import Sealer
    from dapd.datastore import Datastore, Opened


@contextmanager
def command_store(config: Path | None, command: str) -> Iterator[tuple[Config, Datastore, Sealer]]:
    """Open the datastore for the short transactions of ``dapd COMMAND``, such as "task"."""
    from dapd.commits.sealing_keys import check_sealing_keys
    from dapd.config.keyfiles import read_sealing_keys
    from dapd.crypto import make_sealer, sealing_key_id

    loaded = load_config(config)
    keys = read_sealing_keys(loaded)
    opened = open_as_owner(loaded, command)
    try:
        opened.datastore.run_sync(check_sealing_keys, [sealing_key_id(key) for key in keys])
        yield loaded, opened.datastore, make_sealer(keys)
    finally:
        opened.close()


def open_as_owner(config: Config, command: str) -> Opened:
    """Open the datastore of ``config``, as the user that owns the state directory.

    Root becomes that user for good, so files that only root can read must have been read before.
    """
    from dapd.datastore import open_for_command
    from dapd.process.owner import become_owner

    path = config.datastore.path
    become_owner(path.parent)
    holder = f"a `dapd {command}` command, process {os.getpid()}"
    opened = open_for_command(path, holder=holder, now=time.time_ns() // 1_000_000)
    if opened.copied_to is not None:
        upgraded = f"Upgraded the schema of {path}; a copy from before is {opened.copied_to}"
        click.echo(upgraded, err=True)
    return opened
