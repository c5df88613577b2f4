"""``dapd task set | drain | disable | enable | delete``: change one task."""

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
@click.option(
    "--helper-mode",
    type=click.Choice(["sync", "async", "auto", "default"]),
    help="How a Helper answers aggregation jobs: at once, later, or by its load. default: as "
    "[helper] mode.",
)
@click.option(
    "--batch-target-size",
    type=click.IntRange(min=0),
    metavar="REPORTS",
    help="How many reports a Leader puts into a leader-selected batch. 0: the minimum batch size.",
)
@click.option(
    "--report-expiry-age",
    type=click.IntRange(min=1),
    metavar="SECONDS",
    help="How long to keep reports. A Leader's age must not exceed its Helper's.",
)
@click.option(
    "--reports-never-expire", is_flag=True, help="Keep reports for ever. Storage grows for ever."
)
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
    """Change a task's settings that are local to this Aggregator.

    Agree on the expiry age with the other operator: while a Leader keeps reports longer than its
    Helper, their report counts of a batch can differ for good, and the batch can't be collected. So
    lengthen it at the Helper first, shorten it at the Leader first, and keep the Helper's a day
    longer.

    \b
    Example:
      dapd task set 6Xf --report-expiry-age 1209600
    """
    from dapd.datastore import tasks
    from dapd.protocol.task import MAX_INTEGER

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
        if max(settings.batch_target_size or 0, settings.report_expiry_age or 0) > MAX_INTEGER:
            raise UsageError("a size or an age is at most 2^63-1, as SQLite stores it; lower it")
        if settings == found.settings:
            raise UsageError("nothing to change; `dapd task set --help` lists the options")
        datastore.run_sync(tasks.set_settings, found.task_pk, settings)
    click.echo(f"Changed task {found.id_text}.")


@click.command("drain")
@TASK_ID
@click.pass_obj
def drain(config: Path | None, prefix: str) -> None:
    """Refuse new reports of a task, but finish those it has.

    Run it at the Leader: it rejects each uploaded report as `report_dropped`. Accepted reports are
    still aggregated and can be collected; `dapd task show` shows what is left. `dapd task enable`
    undoes it.

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
    """Stop serving a task without losing anything.

    Requests for the task are answered `unrecognizedTask`, and its jobs wait until
    `dapd task enable`. Its reports still expire meanwhile.

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
    """Serve a drained or disabled task again.

    \b
    Example:
      dapd task enable 6Xf
    """
    from dapd.protocol.task import TaskState

    _change(config, prefix, TaskState.ACTIVE)


@click.command("delete")
@TASK_ID
@click.option("--discard", is_flag=True, help="Delete uncollected reports, too.")
@click.pass_obj
def delete(config: Path | None, prefix: str, *, discard: bool) -> None:
    """Delete a task with all its data. Without --discard, refuse while reports are uncollected.

    Drain the task first and collect its batches. The task is no longer served, and the running
    daemon deletes its rows. dapd keeps the task's id and the time up to which it accepted reports,
    so that the task, if it is added again, accepts none of them a second time.

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
    click.echo(f"Deleted task {found.id_text}; the daemon removes its data.")
    if lost := given_up.waiting + given_up.aggregated:
        click.echo(f"Discarded {count(lost, 'uncollected report')}.")


def _change(config: Path | None, prefix: str, state: TaskState) -> None:
    from dapd.commits.tasks import set_task_state

    with command_store(config, "task") as (_, datastore, _):
        found = find(datastore, prefix)
        changed = datastore.run_sync(set_task_state, found.task_id, state)
    click.echo(f"Task {found.id_text} is {'now' if changed else 'already'} {state.value}.")


COMMANDS = (set_task, drain, disable, enable, delete)
