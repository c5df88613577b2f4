"""``dapd reload``: make the running daemon read its configuration again."""

from __future__ import annotations

from pathlib import Path

import click

from dapd.cli.output import AS_JSON, load_config, tell
from dapd.errors import UsageError


@click.command()
@AS_JSON
@click.pass_obj
def reload(config: Path | None, *, as_json: bool) -> None:
    """Make the running daemon read its configuration again.

    The daemon reads the file and its certificates, and checks all of it first; if anything is
    wrong, it changes nothing and the exit status is 1. No request is dropped. The command lists
    which keys were applied, and which need a restart.

    \b
    Example:
      dapd reload
    """
    from dapd.admin.operation import Nothing
    from dapd.admin.reload import RELOAD
    from dapd.cli.daemon import call
    from dapd.telemetry.journal import complain

    try:
        done = call(load_config(config), RELOAD, Nothing())
    except UsageError as error:
        complain(f"{error}; nothing was changed")
        raise click.exceptions.Exit(1) from None
    lines = [
        *(f"applied: {key}" for key in done.applied),
        *(f"needs a restart: {key}" for key in done.restart),
    ]
    tell(done, lines or ["Nothing has changed."], as_json=as_json)
