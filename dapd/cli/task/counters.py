"""``dapd task counters``: how many reports of a task had which outcome."""

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
    """How many reports of a task had which outcome, since it was added; none ever falls.

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
        click.echo("Nothing is counted yet.")


COMMANDS = (counters,)
