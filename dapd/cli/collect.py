"""``dapd collect``: print a batch's result. Section "Collecting Results"; rules A8, C7."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

import click

from dapd.errors import UsageError
from dapd.wording import count

if TYPE_CHECKING:
    from dapd.collector import Result
    from dapd.messages.task import TaskConfiguration

_BAR_WIDTH = 50


@click.command()
@click.option(
    "--task",
    "task_file",
    type=click.Path(dir_okay=False, path_type=Path),
    required=True,
    metavar="FILE",
    help="The task's collector.toml, from `dapd task new`.",
)
@click.option(
    "--interval",
    nargs=2,
    metavar="START DURATION",
    help="Collect the reports of DURATION seconds from START, given as seconds since the Epoch or "
    "in ISO 8601. For time-interval tasks.",
)
@click.option(
    "--next-batch",
    is_flag=True,
    help="Collect the next batch that the Leader has selected. For leader-selected tasks.",
)
@click.option(
    "--ca",
    type=click.Path(dir_okay=False, path_type=Path),
    metavar="FILE",
    help="Trust the certificate authorities in this PEM file, instead of the system's.",
)
@click.option("--allow-insecure-http", is_flag=True, help="Allow http:// URLs beyond this machine.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object on one line.")
def collect(
    task_file: Path,
    *,
    interval: tuple[str, str] | None,
    next_batch: bool,
    ca: Path | None,
    allow_insecure_http: bool,
    as_json: bool,
) -> None:
    """Collect a batch and print its result.

    Waits until the batch is ready. START and DURATION must be multiples of the task's time
    precision. With --next-batch the command confirms the batch to the Leader only after printing
    it: a run that is interrupted before prints the same batch the next time.

    \b
    Examples:
      dapd collect --task collector.toml --interval 2026-01-01T00:00Z 3600
      dapd collect --task collector.toml --next-batch --json
    """
    from dapd.collector import Query, collect_sync, read_collector_task

    if (interval is None) == (not next_batch):
        raise UsageError("which batch? give either --interval START DURATION or --next-batch")
    task = read_collector_task(task_file)
    try:
        query = Query.next_batch() if interval is None else Query.interval(*interval)
        query.request(task.configuration)
    except ValueError as error:
        option = "--next-batch" if interval is None else f"--interval {' '.join(interval)}"
        raise UsageError(f"{option}: {error}") from None

    with _waiting() as done:

        def show(result: Result) -> None:
            done()
            click.echo(_json(result) if as_json else _text(result, task.configuration))
            sys.stdout.flush()  # before the Leader may forget the batch (A8)

        collect_sync(task, query, show, ca=ca, allow_insecure_http=allow_insecure_http)


def _json(result: Result) -> str:
    return json.dumps(
        {
            "value": result.value,
            "report_count": result.report_count,
            "start": result.start,
            "duration": result.duration,
        }
    )


def _text(result: Result, configuration: TaskConfiguration) -> str:
    from dapd.vdaf import format_result

    start, end = _time(result.start), _time(result.start + result.duration)
    about = f"{count(result.report_count, 'report')} from {start} to {end}"
    if configuration.vdaf.kind == "histogram" and isinstance(result.value, list):
        return "\n".join([*bars(result.value), about])
    return f"{format_result(result.value)}\n{about}"


def _time(seconds: int) -> str:
    """Format a time in ISO 8601, or as seconds after the year 9999: a precision may be longer."""
    try:
        moment = datetime.fromtimestamp(seconds, UTC)
    except (ValueError, OverflowError, OSError):
        return f"{seconds} s"
    return moment.isoformat(timespec="seconds").replace("+00:00", "Z")


def bars(counts: list[int], width: int = _BAR_WIDTH) -> Iterator[str]:
    """Draw a histogram: for each bucket a line with its number, its count and a bar."""
    most = max(counts) or 1
    label, number = len(str(len(counts) - 1)), len(str(most))
    for bucket, reports in enumerate(counts):
        bar = "█" * round(width * reports / most)
        yield f"{bucket:>{label}} {reports:>{number}} {bar}".rstrip()


@contextmanager
def _waiting() -> Iterator[Callable[[], None]]:
    """Show a spinner on standard error, if that is a terminal, until the function is called."""
    if not sys.stderr.isatty():
        yield lambda: None
        return
    from rich.console import Console

    status = Console(stderr=True).status("waiting for the batch")
    with status:
        yield status.stop
