"""``dapd log``: which lines the running daemon writes."""

from __future__ import annotations

from pathlib import Path

import click

from dapd.cli.output import AS_JSON, load_config, tell


@click.group()
def log() -> None:
    """What the running daemon writes to its log."""


@log.command("level")
@click.argument("wanted", metavar="[LEVEL]", required=False)
@AS_JSON
@click.pass_obj
def level(config: Path | None, wanted: str | None, *, as_json: bool) -> None:
    """Show the lowest level that is written, or change it until the daemon stops.

    LEVEL is debug, info, warning or error. `[log] level` in the configuration stays as it is.

    \b
    Example:
      dapd log level debug
    """
    from dapd.admin import log as operations
    from dapd.admin.operation import Nothing
    from dapd.cli.daemon import call
    from dapd.errors import UsageError

    loaded = load_config(config)
    match wanted:
        case None:
            found = call(loaded, operations.SHOW, Nothing())
        case "debug" | "info" | "warning" | "error":
            found = call(loaded, operations.SET, operations.LogLevel(wanted))
        case _:
            raise UsageError(f"{wanted} is no level; choose debug, info, warning or error")
    lines = [f"Written from level {found.level} on."]
    if found.level != found.configured:
        lines.append(f"After a restart: {found.configured}, as configured.")
    tell(found, lines, as_json=as_json)
