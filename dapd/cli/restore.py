"""``dapd restore``: replace the database with a backup, then reopen the batches that this closed.

A restored database doesn't know which reports were admitted and which batches were collected after
the backup, so it is quarantined (``dapd.commits.restore``, ADR 0020).
"""

from __future__ import annotations

import os
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from dapd.cli.output import AS_JSON, load_config
from dapd.errors import UsageError
from dapd.wording import count

if TYPE_CHECKING:
    from dapd.commits.restore import Quarantine
    from dapd.config import Config
    from dapd.datastore import Datastore, Tx
    from dapd.datastore.tasks import Outline

_MOST_BUCKETS = 1000


class _Restore(click.Group):
    """The group that reads ``dapd restore FILE`` as its hidden command ``file FILE``."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        if args and args[0] not in {*self.commands, *ctx.help_option_names}:
            args = ["file", *args]
        return super().parse_args(ctx, args)


@click.group(cls=_Restore, subcommand_metavar="FILE | accept | status")
def restore() -> None:
    """Replace the database of a stopped daemon with the backup FILE.

    A backup doesn't know which reports were accepted and which batches were collected after it was
    made. To count nothing twice, the restored database drops every report made before now and
    closes every batch up to now, in all tasks; later reports and batches are not affected.

    Then compare `dapd restore status` with the other Aggregator's, and reopen the batches that were
    not collected since the backup with `dapd restore accept`.

    After restoring a snapshot of the whole machine, run this with the database's own path as FILE
    before the daemon starts: the daemon itself can't notice that it was set back.

    The command asks before it changes anything, unless --yes follows FILE.

    \b
    Example:
      dapd restore backups/dapd-20270131T020000Z-81723.sqlite
    """


@restore.command("file", hidden=True)
@click.argument("file", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("--yes", is_flag=True, help="Don't ask.")
@click.pass_obj
def from_file(config: Path | None, file: Path, *, yes: bool) -> None:
    """Replace the database with a copy of the backup FILE. The daemon must be stopped.

    Checks FILE first: it must be undamaged, and its sealed values must open with the configured
    keys. Keeps the previous database beside the new one.
    """
    from dapd.config.keyfiles import read_sealing_keys
    from dapd.crypto import make_sealer, sealing_key_id
    from dapd.datastore.replace import replace_database
    from dapd.datastore.verify import verify
    from dapd.process.owner import become_owner, owner_name

    loaded = load_config(config)
    keys = read_sealing_keys(loaded)
    key_ids = [sealing_key_id(key) for key in keys]
    path = loaded.datastore.path
    now = time.time_ns() // 1_000_000
    if not yes:
        click.confirm(
            f"Replace {path} with {file}? Every report up to now will be dropped, and every batch "
            "up to now will be closed",
            abort=True,
        )
    become_owner(path.parent)
    if not os.access(file, os.R_OK):
        owner = owner_name(path.parent)
        raise UsageError(f"{file}: user {owner}, which owns the database, must be able to read it")
    done = replace_database(
        path,
        file,
        holder=f"a `dapd restore` command, process {os.getpid()}",
        now=now,
        check=lambda copy: verify(copy, make_sealer(keys), key_ids),
        prepare=lambda datastore: _prepare(loaded, datastore, now),
    )
    click.echo(f"Restored {file} to {path}; it is quarantined.")
    if done.kept is not None:
        click.echo(f"The previous database is kept as {done.kept}; nothing in it expires, so")
        click.echo("remove it when you don't need it any more.")
    for task in done.prepared:
        click.echo(f"Task {task.id_text}: {_mark(task)}")
    click.echo(
        "Start the daemon; it accepts new reports. Compare `dapd restore status` with the other\n"
        "Aggregator's, then reopen batches that were not collected since the backup with\n"
        "`dapd restore accept --task ID`."
    )


@restore.command("status")
@click.option(
    "--task",
    "task_id",
    metavar="ID",
    help="Show all buckets of this task, quarantined or not. ID may be its first characters.",
)
@AS_JSON
@click.pass_obj
def status(config: Path | None, task_id: str | None, *, as_json: bool) -> None:
    """Show what a restore closed, with numbers to compare.

    Compare them with the other Aggregator's, which shows its own numbers with --task. A batch whose
    report counts and checksums agree on both sides can be collected, unless it was before.

    \b
    Example:
      dapd restore status --task 5WeO
    """
    import json

    from dapd.cli.store import command_store

    with command_store(config, "restore") as (_, datastore, _sealer):
        found = datastore.read_sync(_inspect, task_id)
    if as_json:
        click.echo(json.dumps([_described(each) for each in found], indent=2))
        return
    if not found:
        click.echo("Nothing is quarantined.")
    for each in found:
        for line in _lines(each):
            click.echo(line)


@restore.command("accept")
@click.option(
    "--task",
    "task_id",
    metavar="ID",
    required=True,
    help="The task; its first characters are enough.",
)
@click.option(
    "--from",
    "since",
    metavar="TIME",
    help="Reopen batches from this time on: seconds since the Epoch, or ISO 8601.  [default: the "
    "beginning]",
)
@click.option(
    "--until",
    metavar="TIME",
    help="Reopen batches before this time.  [default: all that are closed]",
)
@click.option("--batch", metavar="ID", help="Reopen one batch of a leader-selected task.")
@click.pass_obj
def accept(
    config: Path | None, task_id: str, since: str | None, until: str | None, batch: str | None
) -> None:
    """Reopen batches for collection. The daemon may keep running.

    Reopen only what was NOT collected since the backup: a batch that is collected twice can reveal
    more about single clients than either result. Reports made before the restore stay refused.

    \b
    Example:
      dapd restore accept --task 5WeO --from 2027-01-30 --until 2027-01-31
    """
    from dapd.admin.restore import ACCEPT, Accept
    from dapd.admin.restore import accept as accept_alone
    from dapd.cli.daemon import ask

    loaded = load_config(config)
    request = Accept(task_id, _seconds("--from", since), _seconds("--until", until), batch)
    reopened = ask(
        loaded, ACCEPT, request, lambda datastore: datastore.run_sync(accept_alone, request)
    )
    for lo, hi in reopened.intervals:
        click.echo(f"Reopened: {_text(lo)} until {_text(hi)}")
    for batch_id in reopened.batches:
        click.echo(f"Reopened: batch {batch_id}")


def _prepare(config: Config, datastore: Datastore, now: int) -> list[Outline]:
    """Quarantine the copy and return its tasks."""
    from dapd.commits.restore import quarantine
    from dapd.datastore import safe_clock

    at = datastore.read_sync(safe_clock.instant, now)
    return datastore.run_sync(quarantine, at, config.reports.early_leeway)


def _inspect(tx: Tx, task_id: str | None) -> list[Quarantine]:
    from dapd.commits.restore import inspect
    from dapd.datastore import tasks

    if task_id is not None:
        task = tasks.named(tasks.outlines(tx), task_id)
        return [inspect(tx, task, _MOST_BUCKETS, everything=True)]
    found = [inspect(tx, task, _MOST_BUCKETS, everything=False) for task in tasks.outlines(tx)]
    return [each for each in found if each.ranges]


def _described(found: Quarantine) -> dict[str, Any]:
    """Return what ``--json`` prints of a task; times are in seconds."""
    from dapd.admin.restore import seconds
    from dapd.messages.common import b64url_encode

    task = found.task
    precision = task.configuration.time_precision
    ranges: dict[str, Any] = (
        {"quarantined_intervals": [seconds(task, each) for each in found.ranges]}
        if task.by_time
        else {"quarantined_batches": [b64url_encode(each.lo) for each in found.ranges]}
    )
    return {
        "task_id": task.id_text,
        "role": "leader" if task.is_leader else "helper",
        "reports_dropped_before": task.quarantined_before * precision,
        **ranges,
        "buckets": [
            {
                "bucket": int.from_bytes(each.bucket, "big") * precision
                if task.by_time
                else b64url_encode(each.bucket),
                "reports": each.n,
                "checksum": each.checksum.hex(),
                "state": each.state or "open",
            }
            for each in found.tallies
        ],
        "buckets_are_complete": found.is_complete,
    }


def _lines(found: Quarantine) -> list[str]:
    described = _described(found)
    lines = [f"Task {described['task_id']}, {described['role']}: {_mark(found.task)}"]
    intervals = described.get("quarantined_intervals", ())
    lines += [f"  closed       {_text(lo)} until {_text(hi)}" for lo, hi in intervals]
    batches = described.get("quarantined_batches", ())
    lines += [f"  closed       batch {batch_id}" for batch_id in batches]
    for each in described["buckets"]:
        bucket = _text(each["bucket"]) if found.task.by_time else each["bucket"]
        lines.append(
            f"  {each['state']:12} {bucket}  {count(each['reports'], 'report'):>17}  "
            f"checksum {each['checksum'][:16]}"
        )
    if not found.is_complete:
        lines.append(f"  ... (only the first {_MOST_BUCKETS} buckets are listed)")
    return lines


def _mark(task: Outline) -> str:
    if not task.quarantined_before:
        return "not quarantined"
    mark = task.quarantined_before * task.configuration.time_precision
    return f"reports before {_text(mark)} are dropped"


def _seconds(option: str, text: str | None) -> int | None:
    from dapd.taskfile.values import seconds_of

    if text is None:
        return None
    try:
        return seconds_of(text)
    except ValueError as error:
        raise UsageError(f"{option} {text}: {error}") from None


def _text(seconds: int) -> str:
    try:
        return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    except (ValueError, OverflowError, OSError):
        return str(seconds)
