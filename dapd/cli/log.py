"""``dapd log``: show or change the running daemon's log level."""

from __future__ import annotations

from pathlib import Path

import click

from dapd.cli.output import AS_JSON, load_config, tell


@click.group()
def log() -> None:
    """Control the running daemon's log."""


@log.command("level")
@click.argument("wanted", metavar="[LEVEL]", required=False)
@AS_JSON
@click.pass_obj
def level(config: Path | None, wanted: str | None, *, as_json: bool) -> None:
    """Show the log level, or set it to LEVEL until the daemon stops.

    The daemon writes lines of this level and above. LEVEL is debug, info, warning or error.
    `[log] level` in the configuration is not changed.

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
            raise UsageError(f"{wanted}: not a log level; use debug, info, warning or error")
    lines = [f"Log level: {found.level}."]
    if found.level != found.configured:
        lines.append(f"After a restart: {found.configured}, as configured.")
    tell(found, lines, as_json=as_json)
