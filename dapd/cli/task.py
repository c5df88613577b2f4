"""``dapd task``: make tasks, and look after those of a daemon's datastore, also while it runs."""

from __future__ import annotations

import hashlib
import json
from dataclasses import fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from dapd.cli.store import command_store
from dapd.errors import UsageError

if TYPE_CHECKING:
    from dapd.crypto import Sealer
    from dapd.datastore import Datastore
    from dapd.protocol.task import Task
    from dapd.taskfile import TaskDraft

_FILE = click.Path(exists=True, dir_okay=False, path_type=Path)


@click.group()
def task() -> None:
    """Make tasks, and look after those of a daemon.

    A task is agreed on outside the protocol: `task new` writes a file for each of the four
    parties, `task add` loads a Leader's or a Helper's. docs/tasks.md explains the files.
    """


@task.command("new")
@click.option("--from", "source", type=_FILE, help="A task file that has some of the keys already.")
@click.option("--vdaf", help="Such as count, sum:max_measurement=100 or histogram:length=10.")
@click.option("--leader", metavar="URL", help="Where the Leader is reached.")
@click.option("--helper", metavar="URL", help="Where the Helper is reached.")
@click.option("--batch-mode", type=click.Choice(["time-interval", "leader-selected"]))
@click.option("--time-precision", type=int, metavar="SECONDS")
@click.option("--min-batch-size", type=int, metavar="REPORTS")
@click.option("--task-info", metavar="TEXT", help="Tells tasks of the same parameters apart.")
@click.option(
    "--task-interval",
    nargs=2,
    metavar="START DURATION",
    help="Only reports of this time: seconds or ISO 8601, then seconds.",
)
@click.option("--allow-insecure-http", is_flag=True, help="http:// beyond this machine.")
@click.option("--allow-tiny-batches", is_flag=True, help="A batch of one report: no privacy.")
@click.option(
    "--out",
    type=click.Path(file_okay=False, path_type=Path),
    required=True,
    help="The directory for the four files.",
)
def new(
    source: Path | None, out: Path, *, allow_insecure_http: bool, allow_tiny_batches: bool,
    **given: Any,
) -> None:  # fmt: skip
    """Make a task: ids, keys and tokens, and a file for each party.

    \b
    Example:
      dapd task new --vdaf histogram:length=10 --batch-mode time-interval \\
        --time-precision 3600 --min-batch-size 100 \\
        --leader https://leader.example/ --helper https://helper.example/ --out my-task
    """
    from dapd.taskfile import new_task, write_task_files

    draft = _draft(source, given)
    files = new_task(
        draft, allow_insecure_http=allow_insecure_http, allow_tiny_batches=allow_tiny_batches
    )
    for path in write_task_files(out, files):
        click.echo(path)
    click.echo("Give each party its own file, over a channel that you both trust.")
    click.echo(f"Next, at the Leader: dapd --config FILE task add {out / 'leader.toml'}")


@task.command("add")
@click.argument("file", type=_FILE)
@click.option("--allow-insecure-http", is_flag=True, help="http:// beyond this machine.")
@click.option("--allow-tiny-batches", is_flag=True, help="A batch of one report: no privacy.")
@click.pass_obj
def add(
    config: Path | None, file: Path, *, allow_insecure_http: bool, allow_tiny_batches: bool
) -> None:
    """Load a leader.toml or helper.toml, also while the daemon runs."""
    from dapd.commits.add_task import add_task
    from dapd.protocol.task import TaskSettings
    from dapd.taskfile import (
        HelperTask,
        LeaderTask,
        aggregator_task,
        read_task_file,
        refuse_unsafe,
    )

    read = read_task_file(file)
    if not isinstance(read, LeaderTask | HelperTask):
        raise UsageError(f"{file}: not an Aggregator's file; add a leader.toml or a helper.toml")
    refuse_unsafe(
        read.configuration,
        allow_insecure_http=allow_insecure_http,
        allow_tiny_batches=allow_tiny_batches,
    )
    with command_store(config, "task") as (settings, datastore, sealer):
        defaults = settings.defaults
        task = aggregator_task(
            read,
            TaskSettings(
                defaults.helper_mode, defaults.batch_target_size, defaults.report_expiry_age
            ),
        )
        added = datastore.run_sync(add_task, task, sealer)
    role = task.role.name.capitalize()
    click.echo(f"Task {task.id_text} {'added' if added else 'was there already'}, as its {role}.")
    click.echo(f"TaskConfiguration SHA-256 {_digest(task)}")
    click.echo("Compare that with the other operator: one differing byte fails every report.")


@task.command("list")
@click.option("--json", "as_json", is_flag=True, help="For programs.")
@click.pass_obj
def list_tasks(config: Path | None, *, as_json: bool) -> None:
    """The tasks of a daemon, a line each."""
    tasks = _tasks(config)
    if as_json:
        click.echo(json.dumps([_description(each) for each in tasks], indent=2))
        return
    if not tasks:
        click.echo("No task yet; add one with `dapd --config FILE task add leader.toml`.")
    for each in tasks:
        text = _description(each)
        click.echo(f"{each.id_text}  {text['role']:6}  {text['batch_mode']:15}  {text['vdaf']}")


@task.command("show")
@click.argument("task_id")
@click.option("--json", "as_json", is_flag=True, help="For programs.")
@click.pass_obj
def show(config: Path | None, task_id: str, *, as_json: bool) -> None:
    """All about a task but its secrets. TASK_ID may be its first characters."""
    from dapd.datastore import counters

    with command_store(config, "task") as (_, datastore, sealer):
        found = _find(datastore, sealer, task_id)
        counts = datastore.read_sync(counters.of_task, found.task_pk)
    description = {**_description(found), "counters": counts}
    if as_json:
        click.echo(json.dumps(description, indent=2))
        return
    for key, value in description.items():
        if isinstance(value, dict):
            for name, count in value.items():
                click.echo(f"{name:32} {count}")
        else:
            click.echo(f"{key:32} {value}")


@task.command("set")
@click.argument("task_id")
@click.option("--helper-mode", type=click.Choice(["sync", "async", "auto", "default"]))
@click.option("--batch-target-size", type=click.IntRange(min=0), help="Reports; 0: the minimum.")
@click.option("--report-expiry-age", type=click.IntRange(min=1), metavar="SECONDS")
@click.option("--reports-never-expire", is_flag=True, help="Storage then grows for ever.")
@click.pass_obj
def set_task(
    config: Path | None,
    task_id: str,
    helper_mode: str | None,
    batch_target_size: int | None,
    report_expiry_age: int | None,
    *,
    reports_never_expire: bool,
) -> None:
    """Change what is local to this Aggregator; a running daemon follows within a second."""
    from dapd.datastore import tasks

    if report_expiry_age is not None and reports_never_expire:
        raise UsageError("--report-expiry-age and --reports-never-expire exclude each other")
    with command_store(config, "task") as (_, datastore, sealer):
        found = _find(datastore, sealer, task_id)
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


def _tasks(config: Path | None) -> list[Task]:
    from dapd.datastore import tasks

    with command_store(config, "task") as (_, datastore, sealer):
        return [each.unseal(sealer) for each in datastore.read_sync(tasks.all_tasks)]


def _find(datastore: Datastore, sealer: Sealer, prefix: str) -> Task:
    from dapd.datastore import tasks

    known = [each.unseal(sealer) for each in datastore.read_sync(tasks.all_tasks)]
    found = [each for each in known if each.id_text.startswith(prefix)]
    if len(found) != 1:
        what = "no task" if not found else f"{len(found)} tasks"
        raise UsageError(f"{what} begins with {prefix}; `dapd task list` shows them")
    return found[0]


def _draft(source: Path | None, given: dict[str, Any]) -> TaskDraft:
    import msgspec

    from dapd.messages.common import b64url_encode
    from dapd.taskfile import TaskDraft, parse_vdaf_spec, read_task_draft

    names = {"leader": "leader_aggregator_endpoint", "helper": "helper_aggregator_endpoint"}
    chosen = {names.get(key, key): value for key, value in given.items() if value is not None}
    if spec := chosen.pop("vdaf", None):
        chosen["vdaf"] = parse_vdaf_spec(spec)
    if info := chosen.pop("task_info", None):
        chosen["task_info"] = b64url_encode(info.encode())
    draft = read_task_draft(source) if source else TaskDraft()
    return msgspec.structs.replace(draft, role=None, **chosen)


def _digest(task: Task) -> str:
    return hashlib.sha256(task.configuration_bytes).hexdigest()


def _description(task: Task) -> dict[str, Any]:
    from dapd.messages.common import BatchMode

    agreed = task.configuration
    names = [field.name for field in fields(agreed.vdaf)]
    listed = ",".join(f"{name}={getattr(agreed.vdaf, name)}" for name in names)
    mode = "time-interval" if agreed.batch_mode is BatchMode.TIME_INTERVAL else "leader-selected"
    interval = agreed.task_interval
    precision = agreed.time_precision
    return {
        "task_id": task.id_text,
        "role": task.role.name.lower(),
        "configuration_sha256": _digest(task),
        "task_info": agreed.task_info.decode(errors="backslashreplace"),
        "leader_aggregator_endpoint": agreed.leader_aggregator_endpoint,
        "helper_aggregator_endpoint": agreed.helper_aggregator_endpoint,
        "vdaf": f"{agreed.vdaf.kind}:{listed}".rstrip(":"),
        "batch_mode": mode,
        "time_precision": precision,
        "min_batch_size": agreed.min_batch_size,
        "task_interval": [interval.start * precision, interval.duration * precision]
        if interval
        else None,
        "verification_key_id": task.verification_key_id,
        "helper_mode": task.settings.helper_mode or "default",
        "batch_target_size": task.batch_target_size,
        "report_expiry_age": task.settings.report_expiry_age,
    }
