"""``dapd reload``: the running daemon reads its configuration again."""

from __future__ import annotations

from pathlib import Path

import click

from dapd.cli import required_config
from dapd.errors import UsageError


@click.command()
@click.option("--json", "as_json", is_flag=True, help="For programs.")
@click.pass_obj
def reload(config: Path | None, *, as_json: bool) -> None:
    """Have the running daemon use its configuration file and certificates as they are now.

    All of the file is checked first; if anything is wrong, nothing changes and the exit status is
    1. No request is dropped. Keys that only a restart changes are listed.

    \b
    Example:
      dapd --config dapd.toml reload
    """
    import msgspec

    from dapd import config as configuration
    from dapd.cli.daemon import call
    from dapd.server.admin.operation import Nothing
    from dapd.server.admin.reload import RELOAD

    try:
        done = call(configuration.load(required_config(config)), RELOAD, Nothing())
    except UsageError as error:
        click.echo(f"dapd: {error}; nothing was changed", err=True)
        raise click.exceptions.Exit(1) from None
    if as_json:
        click.echo(msgspec.json.format(msgspec.json.encode(done), indent=2))
        return
    for key in done.applied:
        click.echo(f"applied: {key}")
    for key in done.restart:
        click.echo(f"needs a restart: {key}")
    if not done.applied and not done.restart:
        click.echo("Nothing has changed.")
