"""``dapd task set | drain | disable | enable | delete``: what an operator decides of one task."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import click

from dapd.cli.store import command_store
from dapd.cli.task.files import refuse_both
from dapd.cli.task.lookup import TASK_ID, find, find_kept
from dapd.errors import UsageError
from dapd.wording import count

if TYPE_CHECKING:
    from dapd.protocol.task import TaskState


@click.command("set")
@TASK_ID
@click.option("--helper-mode", type=click.Choice(["sync", "async", "auto", "default"]))
@click.option("--batch-target-size", type=click.IntRange(min=0), help="Reports; 0: the minimum.")
@click.option(
    "--report-expiry-age",
    type=click.IntRange(min=1),
    metavar="SECONDS",
    help="How long reports are kept. A Leader's must not exceed its Helper's.",
)
@click.option("--reports-never-expire", is_flag=True, help="Storage then grows for ever.")
@click.pass_obj
def set_task(
    config: Path | None,
    prefix: str,
    helper_mode: str | None,
    batch_target_size: int | None,
    report_expiry_age: int | None,
    *,
    reports_never_expire: bool,
) -> None:
    """Change what is local to this Aggregator.

    The expiry age needs an agreement: while a Leader keeps reports longer than its Helper, their
    counts of a batch can differ for good, and the batch can't be collected. So lengthen it at the
    Helper first, shorten it at the Leader first, and keep the Helper's a day longer.

    \b
    Example:
      dapd task set 6Xf --report-expiry-age 1209600
    """
    from dapd.datastore import tasks

    if reports_never_expire:
        refuse_both(report_expiry_age)
    with command_store(config, "task") as (_, datastore, _):
        found = find_kept(datastore, prefix)
        settings = found.settings
        if helper_mode is not None:
            mode = None if helper_mode == "default" else helper_mode
            settings = replace(settings, helper_mode=mode)
        if batch_target_size is not None:
            settings = replace(settings, batch_target_size=batch_target_size or None)
        if report_expiry_age is not None or reports_never_expire:
            settings = replace(settings, report_expiry_age=report_expiry_age)
        if settings == found.settings:
            raise UsageError("nothing to change; see `dapd task set --help`")
        datastore.run_sync(tasks.set_settings, found.task_pk, settings)
    click.echo(f"Task {found.id_text} changed.")


@click.command("drain")
@TASK_ID
@click.pass_obj
def drain(config: Path | None, prefix: str) -> None:
    """Take no more reports of a task, and finish with those it has.

    At the Leader: uploads are refused from now on, report by report, as `report_dropped`. What was
    accepted is aggregated and can be collected; `task show` says what is left. `task enable` ends
    it.

    \b
    Example:
      dapd task drain 6Xf
    """
    from dapd.protocol.task import TaskState

    _change(config, prefix, TaskState.DRAINING)


@click.command("disable")
@TASK_ID
@click.pass_obj
def disable(config: Path | None, prefix: str) -> None:
    """Stop a task: nobody is served, nothing is worked on, nothing is lost.

    Everybody is told `unrecognizedTask`, and its jobs wait until `task enable`. Its reports go on
    ageing meanwhile.

    \b
    Example:
      dapd task disable 6Xf
    """
    from dapd.protocol.task import TaskState

    _change(config, prefix, TaskState.DISABLED)


@click.command("enable")
@TASK_ID
@click.pass_obj
def enable(config: Path | None, prefix: str) -> None:
    """Let a drained or disabled task go on.

    \b
    Example:
      dapd task enable 6Xf
    """
    from dapd.protocol.task import TaskState

    _change(config, prefix, TaskState.ACTIVE)


@click.command("delete")
@TASK_ID
@click.option("--discard", is_flag=True, help="Also what no collection has taken yet.")
@click.pass_obj
def delete(config: Path | None, prefix: str, *, discard: bool) -> None:
    """Delete a task with all that it has; refused while something is uncollected.

    Drain it first and collect. From now on nobody is served; the running daemon takes its rows
    away. What stays is its id and the time up to which it took reports, so that a task that is
    added again takes none of them a second time.

    \b
    Example:
      dapd task delete 6Xf
    """
    from dapd.commits.tasks import delete_task

    now = time.time_ns() // 1_000_000
    with command_store(config, "task") as (settings, datastore, _):
        found = find(datastore, prefix)
        given_up = datastore.run_sync(
            delete_task, found.task_id, now, settings.reports.early_leeway, discard=discard
        )
    click.echo(f"Task {found.id_text} is deleted; the daemon takes away what is left of it.")
    if lost := given_up.waiting + given_up.aggregated:
        click.echo(f"It had {count(lost, 'uncollected report')}, which dapd gives up.")


def _change(config: Path | None, prefix: str, state: TaskState) -> None:
    from dapd.commits.tasks import set_task_state

    with command_store(config, "task") as (_, datastore, _):
        found = find(datastore, prefix)
        changed = datastore.run_sync(set_task_state, found.task_id, state)
    click.echo(f"Task {found.id_text} is {state.value}{'' if changed else ' already'}.")


COMMANDS = (set_task, drain, disable, enable, delete)
