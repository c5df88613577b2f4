"""``dapd task new | add | rekey``: write task files and load them into the datastore."""

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
_NEEDED = {
    "vdaf": "--vdaf",
    "batch_mode": "--batch-mode",
    "time_precision": "--time-precision",
    "min_batch_size": "--min-batch-size",
    "leader_aggregator_endpoint": "--leader",
    "helper_aggregator_endpoint": "--helper",
}
"""The keys of a task that `task new` can't make, with their options."""
_ALLOW_INSECURE_HTTP = click.option(
    "--allow-insecure-http", is_flag=True, help="Allow http:// URLs beyond this machine."
)
_ALLOW_TINY_BATCHES = click.option(
    "--allow-tiny-batches",
    is_flag=True,
    help="Allow batches of one report, whose result is one client's measurement.",
)


@click.command("new")
@click.option(
    "--from",
    "source",
    type=_FILE,
    help="Take the keys that this task file contains; options override them.",
)
@click.option(
    "--vdaf",
    metavar="VDAF",
    help="The function to compute: count, sum:max_measurement=100, histogram:length=10, "
    "sumvec:length=3,max_measurement=7 or multihotcountvec:length=5,max_weight=2.",
)
@click.option("--leader", metavar="URL", help="The Leader's base URL.")
@click.option("--helper", metavar="URL", help="The Helper's base URL.")
@click.option(
    "--batch-mode",
    type=click.Choice(["time-interval", "leader-selected"]),
    help="How batches are made: the Collector asks for a time interval, or the Leader selects the "
    "reports of a batch as they arrive.",
)
@click.option(
    "--time-precision",
    type=int,
    metavar="SECONDS",
    help="Round reports' times down to a multiple of this.",
)
@click.option(
    "--min-batch-size",
    type=int,
    metavar="REPORTS",
    help="The fewest reports that may make a result.",
)
@click.option(
    "--task-info",
    metavar="TEXT",
    help="A text that tells this task from others with the same parameters.",
)
@click.option(
    "--task-interval",
    nargs=2,
    metavar="START DURATION",
    help="Accept only reports of DURATION seconds from START, given as seconds since the Epoch or "
    "in ISO 8601.",
)
@click.option(
    "--report-expiry-age",
    type=click.IntRange(min=1),
    metavar="SECONDS",
    help="How long the Leader keeps reports; the Helper keeps them a day longer.  [default: four "
    "weeks]",
)
@click.option(
    "--reports-never-expire", is_flag=True, help="Keep reports for ever. Storage grows for ever."
)
@_ALLOW_INSECURE_HTTP
@_ALLOW_TINY_BATCHES
@click.option(
    "--out",
    type=click.Path(file_okay=False, path_type=Path),
    required=True,
    help="Write the four files into this directory.",
)
def new(
    source: Path | None, out: Path, *, reports_never_expire: bool, allow_insecure_http: bool,
    allow_tiny_batches: bool, **given: Any,
) -> None:  # fmt: skip
    """Make a task and write a file for each party.

    Makes the task's id, keys and tokens. Needed, unless --from has them: --vdaf, --batch-mode,
    --time-precision, --min-batch-size, --leader and --helper.

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
    if absent := [option for key, option in _NEEDED.items() if getattr(draft, key) is None]:
        raise UsageError(f"missing: {', '.join(absent)}; `dapd task new --help` describes them")
    files = new_task(
        draft, allow_insecure_http=allow_insecure_http, allow_tiny_batches=allow_tiny_batches
    )
    for path in write_task_files(out, files):
        click.echo(path)
    click.echo("Send each party its own file, over a channel that keeps it secret.")
    click.echo(f"Next, at the Leader: dapd --config FILE task add {out / 'leader.toml'}")


@click.command("add")
@click.argument("file", type=_FILE)
@_ALLOW_INSECURE_HTTP
@_ALLOW_TINY_BATCHES
@click.pass_obj
def add(
    config: Path | None, file: Path, *, allow_insecure_http: bool, allow_tiny_batches: bool
) -> None:
    """Add the task in FILE, a leader.toml or helper.toml. The daemon may keep running.

    A deleted task can be added again: it starts without its old reports, and doesn't accept any of
    them a second time.

    \b
    Example:
      dapd task add leader.toml
    """
    from dapd.commits.tasks import add_task
    from dapd.datastore import tasks
    from dapd.protocol.task import LAST_MOMENT, TaskSettings
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
    role = task.role.name.capitalize()
    if added:
        click.echo(f"Added task {task.id_text} as its {role}.")
    else:
        click.echo(
            f"Task {task.id_text} exists already, as its {role}; it is {stored.state.value}."
        )
    click.echo(f"TaskConfiguration SHA-256 {digest(task)}")
    click.echo("Compare this hash with the other operator's: if it differs, every report fails.")
    mark = min(task.ms_of(stored.marks[1]), LAST_MOMENT)
    quarantined = datetime.fromtimestamp(mark // 1000, UTC)
    if quarantined > datetime.now(UTC):
        click.echo(f"This database was restored: reports until {moment(quarantined)} are dropped.")


@click.command("rekey")
@click.argument("file", type=_FILE)
@click.pass_obj
def rekey(config: Path | None, file: Path) -> None:
    """Restore a task's secrets from its task file FILE.

    Use it after the task's sealing key was lost (`dapd datastore forget-key`). FILE is this task's
    leader.toml or helper.toml, for the same role. The task keeps its settings, its state and the
    tokens it accepts. A Leader sends the token in FILE to its Helper: if that token was replaced
    since, set the newer one afterwards with `dapd task token use`.

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
    click.echo(f"Restored the secrets of task {task.id_text}.")
    if not current:
        click.echo("The token that the file has for requests to this Aggregator was replaced; it")
        click.echo("is still refused.")


def refuse_both(report_expiry_age: int | None) -> None:
    """Raise ``UsageError`` if an age is given together with --reports-never-expire."""
    if report_expiry_age is not None:
        raise UsageError("give --report-expiry-age or --reports-never-expire, not both")


def digest(task: Task) -> str:
    """Return the SHA-256 of the task configuration, for the two operators to compare."""
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
        chosen["role"] = None  # the option is the Leader's age, even if the file is the Helper's
    return msgspec.structs.replace(draft, **chosen)


COMMANDS = (new, add, rekey)
