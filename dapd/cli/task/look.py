"""``dapd task list | show``: show tasks, without their secrets."""

from __future__ import annotations

import json
import time
from dataclasses import asdict, fields
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from dapd.cli.output import AS_JSON
from dapd.cli.store import command_store
from dapd.cli.task.files import digest
from dapd.cli.task.lookup import TASK_ID, find

if TYPE_CHECKING:
    from dapd.commits.tasks import TaskStanding
    from dapd.crypto import Sealer
    from dapd.datastore import Tx
    from dapd.datastore.tasks import SealedTask
    from dapd.protocol.task import Task

_EMPTY = {"report_expiry_age": "never", "helper_mode": "default"}


@click.command("list")
@click.option("--all", "everything", is_flag=True, help="Include deleted tasks.")
@AS_JSON
@click.pass_obj
def list_tasks(config: Path | None, *, everything: bool, as_json: bool) -> None:
    """List the tasks of a daemon, one per line.

    \b
    Example:
      dapd task list
    """
    from dapd.datastore import tasks
    from dapd.protocol.task import TaskState

    with command_store(config, "task") as (_, datastore, sealer):
        stored = [
            _shown(each, sealer)
            for each in datastore.read_sync(tasks.all_tasks)
            if everything or each.state is not TaskState.PURGED
        ]
    if as_json:
        click.echo(json.dumps(stored, indent=2))
        return
    if not stored:
        click.echo("No tasks yet; add one with `dapd --config FILE task add leader.toml`.")
    for each in stored:
        what = f"{each['batch_mode']:15}  {each['vdaf']}" if "vdaf" in each else ""
        trouble = f"unreadable: {each['unreadable']}" if "unreadable" in each else ""
        line = f"{each['task_id']}  {each['role']:6}  {each['state']:8}  {trouble or what}"
        click.echo(line.rstrip())


@click.command("show")
@TASK_ID
@AS_JSON
@click.pass_obj
def show(config: Path | None, prefix: str, *, as_json: bool) -> None:
    """Show all about a task except its secrets.

    Reports begin to expire uncollected at `collect_before`.

    \b
    Example:
      dapd task show 6Xf
    """
    from dapd.datastore import counters

    now = time.time_ns() // 1_000_000
    with command_store(config, "task") as (_, datastore, sealer):
        found = find(datastore, prefix)
        shown = _shown(found, sealer)
        if "vdaf" in shown:
            shown |= _uncollected(datastore.read_sync(_standing, found, now))
            shown["counters"] = datastore.read_sync(counters.of_task, found.task_pk)
    if as_json:
        click.echo(json.dumps(shown, indent=2))
        return
    for key, value in shown.items():
        prefix = "uncollected_" if key == "uncollected" else ""
        for name, each in value.items() if isinstance(value, dict) else [(key, value)]:
            text = _EMPTY.get(name, "-") if each is None else str(each)
            if name == "collect_before" and each is not None:
                text += f" ({_relative(each, now)})"
            click.echo(f"{prefix + name:32} {text}")


def _shown(stored: SealedTask, sealer: Sealer) -> dict[str, Any]:
    """Describe a task; of an unreadable one, what can be read, and why it is unreadable."""
    from dapd.datastore.tasks import UnreadableTask
    from dapd.protocol.task import TaskState

    shown = {
        "task_id": stored.id_text,
        "role": stored.role.name.lower(),
        "state": stored.state.value,
    }
    try:
        shown = _description(stored.public())
        if stored.state is not TaskState.PURGED:  # its secrets are gone
            stored.unseal(sealer)
    except UnreadableTask as error:
        shown["unreadable"] = f"{error}; {error.remedy}"
    return shown


def _standing(tx: Tx, stored: SealedTask, now: int) -> TaskStanding:
    from dapd.commits.tasks import task_standing
    from dapd.datastore import safe_clock

    return task_standing(tx, stored.public(), safe_clock.instant(tx, now))


def _uncollected(standing: TaskStanding) -> dict[str, Any]:
    left = asdict(standing.uncollected)
    del left["first_expiring"]
    return {"uncollected": left, "collect_before": _moment(standing.collect_before)}


def _moment(ms: int | None) -> str | None:
    """Return a time in ISO 8601 and UTC; ``None`` for never, or after the year 9999."""
    from dapd.protocol.task import LAST_MOMENT

    if not ms or ms > LAST_MOMENT:
        return None
    return datetime.fromtimestamp(ms // 1000, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def _relative(moment: str, now: int) -> str:
    from dapd.wording import duration

    left = int(datetime.fromisoformat(moment).timestamp()) * 1000 - now
    return f"in {duration(left)}" if left > 0 else "now"


def _description(task: Task) -> dict[str, Any]:
    """Describe a task by its configuration and settings, without looking at its reports."""
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
        "state": task.state.value,
        "configuration_sha256": digest(task),
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
        "expired_before": _moment(task.ms_of(task.expired_before)),
        "quarantined_before": _moment(task.ms_of(task.quarantined_before)),
    }


COMMANDS = (list_tasks, show)
