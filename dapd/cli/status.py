"""``dapd status``: the state of the running daemon, and what an operator must do."""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path
from typing import TYPE_CHECKING

import click

from dapd.advice import upkeep
from dapd.cli.output import AS_JSON, age, load_config, moment, tell
from dapd.errors import printable
from dapd.wording import count, duration

if TYPE_CHECKING:
    from collections.abc import Iterator

    from dapd.admin.status import StatusView

_NOT_RUNNING = 3
"""The exit status of `systemctl status` for a stopped service."""
_NAMED = 5
"""Tasks of one state that are named; `dapd task list` shows them all."""


@click.command()
@AS_JSON
@click.pass_obj
def status(config: Path | None, *, as_json: bool) -> None:
    """Show the daemon's state, and what you must do.

    The last lines list what you must do, if anything. Exits 3 if no daemon runs.

    \b
    Example:
      dapd status
    """
    from dapd.admin.operation import Nothing
    from dapd.admin.status import SHOW
    from dapd.cli.daemon import NoDaemon, call

    try:
        found = call(load_config(config), SHOW, Nothing())
    except NoDaemon as error:
        click.echo(f"dapd: {error}", err=True)
        raise click.exceptions.Exit(_NOT_RUNNING) from None
    tell(found, _lines(found), as_json=as_json)


def _lines(found: StatusView) -> Iterator[str]:
    roles = " and ".join(found.roles) or "no task yet"
    up = duration(int(1000 * found.uptime_seconds))
    stopping = ", stopping" if found.stopping else ""
    yield f"dapd {found.version}, {roles}, process {found.pid}, up {up}{stopping}"
    for head, lines in (
        ("tasks", _tasks(found)),
        ("jobs", _jobs(found)),
        ("uploads", _uploads(found)),
        ("peers", _peers(found)),
        ("keys", _keys(found)),
        ("clock", iter([f"held: {found.clock.held}" if found.clock.held else "followed"])),
        ("upkeep", _upkeep(found)),
    ):
        for number, line in enumerate(lines):
            yield f"{'' if number else head:9} {line}"
    yield ""
    yield "To do:" if found.to_do else "Nothing to do."
    for each in found.to_do:
        yield f"- {each}"


def _tasks(found: StatusView) -> Iterator[str]:
    by_state = defaultdict(list)
    for task in found.tasks:
        by_state[task.state].append(f"{task.task[:8]} ({printable(task.info)[:40]})")
    for state, names in sorted(by_state.items()):
        more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
        yield f"{len(names)} {state}: {', '.join(names[:_NAMED])}{more}"
    if not by_state:
        yield "none: `dapd task add FILE`"
    if (restored := upkeep.restored(found.quarantined_tasks)) is not None:
        yield str(restored)


def _jobs(found: StatusView) -> Iterator[str]:
    for line in found.jobs:
        yield f"{line.jobs} {line.kind} {line.state}, {count(line.reports, 'report')}"
        if (job := line.oldest) is not None:
            yield f"  oldest {job.job}, {age(job.created_at)}: {job.waits.text}"
    if not found.jobs:
        yield "none unfinished"
    if waiting := sum(task.waiting_reports for task in found.tasks):
        yield f"{count(waiting, 'report')} in no job yet"


def _uploads(found: StatusView) -> Iterator[str]:
    if "leader" in found.roles:
        yield f"{found.uploads.waiting} of {found.uploads.limit} queued"


def _peers(found: StatusView) -> Iterator[str]:
    from dapd.cli.peer import line

    for peer in found.peers:
        yield line(peer)
    if not found.peers:
        yield "none"


def _keys(found: StatusView) -> Iterator[str]:
    for key in found.keys:
        end = "" if key.next_at is None else f" until {moment(key.next_at)}, then {key.next_state}"
        yield f"id {key.config_id} {key.state}{end}"


def _upkeep(found: StatusView) -> Iterator[str]:
    disk = found.disk
    yield f"disk {disk.free >> 20} MiB free, database {disk.database >> 20} MiB"
    yield f"backup {'none' if found.backup_of is None else 'of ' + moment(found.backup_of)}"
    if found.certificate_until is not None:
        yield f"certificate until {moment(found.certificate_until)}"
    if (error := found.last_error) is not None:
        said = f": {error.detail}" if error.detail else ""
        yield f"last error {error.at} {error.event}{said}"
