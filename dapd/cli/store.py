"""A daemon's datastore as a command opens it, beside the daemon or without one (rule E5).

Left out: the commands that may not write beside a daemon; those go through its admin socket.
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
    """For the short transactions of ``dapd COMMAND``, such as "task" or "key"."""
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
    """The datastore of ``config``. Root is the state directory's owner from here on, for good: what
    only root may read must have been read before.
    """
    from dapd.datastore import open_for_command
    from dapd.process.owner import become_owner

    path = config.datastore.path
    become_owner(path.parent)
    holder = f"a `dapd {command}` command, process {os.getpid()}"
    opened = open_for_command(path, holder=holder, now=time.time_ns() // 1_000_000)
    if opened.copied_to is not None:
        upgraded = f"{path} has this dapd's schema now; as it was before: {opened.copied_to}"
        click.echo(upgraded, err=True)
    return opened
