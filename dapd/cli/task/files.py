"""``dapd task new | add | rekey``: between task files and the datastore."""

from __future__ import annotations

import hashlib
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from dapd.cli.output import moment
from dapd.cli.store import command_store
from dapd.errors import UsageError

if TYPE_CHECKING:
    from dapd.protocol.task import Task
    from dapd.taskfile import HelperTask, LeaderTask, TaskDraft

_FILE = click.Path(exists=True, dir_okay=False, path_type=Path)


@click.command("new")
@click.option("--from", "source", type=_FILE, help="A task file that has some of the keys already.")
@click.option("--vdaf", help="Such as count, sum:max_measurement=100 or histogram:length=10.")
@click.option("--leader", metavar="URL", help="Where the Leader is reached.")
@click.option("--helper", metavar="URL", help="Where the Helper is reached.")
@click.option(
    "--batch-mode",
    type=click.Choice(["time-interval", "leader-selected"]),
    help="What a batch is: reports of a time, or those that the Leader selects.",
)
@click.option(
    "--time-precision", type=int, metavar="SECONDS", help="Reports' times are rounded down to it."
)
@click.option(
    "--min-batch-size", type=int, metavar="REPORTS", help="The fewest that a result is made of."
)
@click.option("--task-info", metavar="TEXT", help="Tells tasks of the same parameters apart.")
@click.option(
    "--task-interval",
    nargs=2,
    metavar="START DURATION",
    help="Only reports of this time: seconds or ISO 8601, then seconds.",
)
@click.option(
    "--report-expiry-age",
    type=click.IntRange(min=1),
    metavar="SECONDS",
    help="How long the Leader keeps reports, the Helper a day longer.  [default: four weeks]",
)
@click.option("--reports-never-expire", is_flag=True, help="Storage then grows for ever.")
@click.option("--allow-insecure-http", is_flag=True, help="http:// beyond this machine.")
@click.option("--allow-tiny-batches", is_flag=True, help="A batch of one report: no privacy.")
@click.option(
    "--out",
    type=click.Path(file_okay=False, path_type=Path),
    required=True,
    help="The directory for the four files.",
)
def new(
    source: Path | None, out: Path, *, reports_never_expire: bool, allow_insecure_http: bool,
    allow_tiny_batches: bool, **given: Any,
) -> None:  # fmt: skip
    """Make a task: ids, keys and tokens, and a file for each party.

    \b
    Example:
      dapd task new --vdaf histogram:length=10 --batch-mode time-interval \\
        --time-precision 3600 --min-batch-size 100 \\
        --leader https://leader.example/ --helper https://helper.example/ --out my-task
    """
    from dapd.taskfile import new_task, write_task_files

    if reports_never_expire:
        refuse_both(given["report_expiry_age"])
        given["report_expiry_age"] = "never"
    draft = _draft(source, given)
    files = new_task(
        draft, allow_insecure_http=allow_insecure_http, allow_tiny_batches=allow_tiny_batches
    )
    for path in write_task_files(out, files):
        click.echo(path)
    click.echo("Give each party its own file, over a channel that you both trust.")
    click.echo(f"Next, at the Leader: dapd --config FILE task add {out / 'leader.toml'}")


@click.command("add")
@click.argument("file", type=_FILE)
@click.option("--allow-insecure-http", is_flag=True, help="http:// beyond this machine.")
@click.option("--allow-tiny-batches", is_flag=True, help="A batch of one report: no privacy.")
@click.pass_obj
def add(
    config: Path | None, file: Path, *, allow_insecure_http: bool, allow_tiny_batches: bool
) -> None:
    """Load a leader.toml or helper.toml, also while the daemon runs.

    A task that was deleted comes back without the reports it had, and takes none of them again.

    \b
    Example:
      dapd task add leader.toml
    """
    from dapd.commits.tasks import add_task
    from dapd.datastore import tasks
    from dapd.protocol.task import TaskSettings
    from dapd.taskfile import aggregator_task, local_settings, refuse_unsafe

    read = _read(file)
    refuse_unsafe(
        read.configuration,
        allow_insecure_http=allow_insecure_http,
        allow_tiny_batches=allow_tiny_batches,
    )
    with command_store(config, "task") as (settings, datastore, sealer):
        defaults = settings.defaults
        local = TaskSettings(
            defaults.helper_mode, defaults.batch_target_size, defaults.report_expiry_age
        )
        task = aggregator_task(read, local_settings(read, local))
        added = datastore.run_sync(add_task, task, sealer)
        stored = datastore.read_sync(tasks.find, task.task_id)
    assert stored is not None
    done = "added" if added else f"was there already, {stored.state.value}"
    click.echo(f"Task {task.id_text} {done}, as its {task.role.name.capitalize()}.")
    click.echo(f"TaskConfiguration SHA-256 {digest(task)}")
    click.echo("Compare that with the other operator: one differing byte fails every report.")
    quarantined = datetime.fromtimestamp(task.ms_of(stored.marks[1]) // 1000, UTC)
    if quarantined > datetime.now(UTC):
        click.echo(f"This database was restored: reports until {moment(quarantined)} are dropped.")


@click.command("rekey")
@click.argument("file", type=_FILE)
@click.pass_obj
def rekey(config: Path | None, file: Path) -> None:
    """Give a known task its secrets again, from its leader.toml or helper.toml.

    After its sealing key was lost (`dapd datastore forget-key`). The file must be this task's, in
    the same role. Its marks, settings and state stay, and so do the tokens that let others in. A
    Leader's token for its Helper is the file's: if it was replaced since, give the newer one
    afterwards with `dapd task token use`.

    \b
    Example:
      dapd task rekey leader.toml
    """
    from dapd.commits.tasks import rekey_task
    from dapd.protocol.task import TaskSettings
    from dapd.taskfile import aggregator_task

    task = aggregator_task(_read(file), TaskSettings())
    with command_store(config, "task") as (_, datastore, sealer):
        current = datastore.run_sync(rekey_task, task, sealer)
    click.echo(f"Task {task.id_text} has its secrets again.")
    if not current:
        click.echo("The file's inbound token was replaced since, and still lets nobody in.")


def refuse_both(report_expiry_age: int | None) -> None:
    """Raises ``UsageError`` if an age is given beside --reports-never-expire."""
    if report_expiry_age is not None:
        raise UsageError("--report-expiry-age and --reports-never-expire exclude each other")


def digest(task: Task) -> str:
    """What the two operators compare."""
    return hashlib.sha256(task.configuration_bytes).hexdigest()


def _read(file: Path) -> LeaderTask | HelperTask:
    from dapd.taskfile import HelperTask, LeaderTask, read_task_file

    read = read_task_file(file)
    if not isinstance(read, LeaderTask | HelperTask):
        raise UsageError(f"{file}: not an Aggregator's file; give a leader.toml or a helper.toml")
    return read


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
    if "report_expiry_age" in chosen:
        chosen["role"] = None  # the option is the Leader's age, whoever's the file is
    return msgspec.structs.replace(draft, **chosen)


COMMANDS = (new, add, rekey)
