"""``dapd task counters``: count a task's reports by outcome."""

from __future__ import annotations

import json
from pathlib import Path

import click

from dapd.cli.output import AS_JSON
from dapd.cli.store import command_store
from dapd.cli.task.lookup import TASK_ID, find


@click.command("counters")
@TASK_ID
@AS_JSON
@click.pass_obj
def counters(config: Path | None, prefix: str, *, as_json: bool) -> None:
    """Show how many of a task's reports had which outcome.

    The counters begin when the task is added, and never decrease.

    \b
    Example:
      dapd task counters 6Xf
    """
    from dapd.datastore import counters as table

    with command_store(config, "task") as (_, datastore, _sealer):
        found = datastore.read_sync(table.of_task, find(datastore, prefix).task_pk)
    if as_json:
        click.echo(json.dumps(found, indent=2))
        return
    for name, value in found.items():
        click.echo(f"{name:40} {value:>12}")
    if not found:
        click.echo("No reports have been counted yet.")


COMMANDS = (counters,)
