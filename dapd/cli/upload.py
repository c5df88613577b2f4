"""``dapd upload``: upload measurements as a Client. Section "Uploading Reports"."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import click

from dapd.errors import UsageError
from dapd.wording import count

if TYPE_CHECKING:
    from dapd.vdaf import Measurement, VdafConfiguration


@click.command(context_settings={"ignore_unknown_options": True})
@click.option(
    "--task",
    "task_file",
    type=click.Path(dir_okay=False, path_type=Path),
    required=True,
    metavar="FILE",
    help="The task's client.toml, from `dapd task new`.",
)
@click.option(
    "--batch-size",
    type=click.IntRange(1, 100_000),
    default=100,
    show_default=True,
    help="Reports per request.",
)
@click.option(
    "--ca",
    type=click.Path(dir_okay=False, path_type=Path),
    metavar="FILE",
    help="Trust the certificate authorities in this PEM file, instead of the system's.",
)
@click.option("--allow-insecure-http", is_flag=True, help="Allow http:// URLs beyond this machine.")
@click.argument("measurements", nargs=-1)
def upload(
    task_file: Path,
    *,
    batch_size: int,
    ca: Path | None,
    allow_insecure_http: bool,
    measurements: tuple[str, ...],
) -> None:
    """Upload MEASUREMENTS, or those on standard input, one per line.

    \b
    A measurement of each VDAF:
      count                 0 or 1
      sum                   a number from 0 to max_measurement
      histogram             the number of a bucket, from 0 to length - 1
      sumvec                `length` numbers from 0 to max_measurement
      multihotcountvec      `length` zeros and ones, at most max_weight ones

    Numbers of a vector are separated by commas. The exit status is 1 if the Leader rejects a
    report.

    \b
    Examples:
      dapd upload --task client.toml 3 7 1
      seq 0 9 | dapd upload --task client.toml
      dapd upload --task vector.toml 0,1,1,0 1,0,0,1
    """
    from dapd.client import upload_sync
    from dapd.taskfile import read_task_file

    task = read_task_file(task_file)
    texts: Iterable[str] = measurements or sys.stdin
    delivered = 0
    with _progress_bar(len(measurements) or None) as advance:

        def progress(sent: int) -> None:
            nonlocal delivered
            delivered += sent
            advance(sent)

        try:
            result = upload_sync(
                task,
                _parsed(task.configuration.vdaf, texts),
                progress=progress,
                batch_size=batch_size,
                ca=ca,
                allow_insecure_http=allow_insecure_http,
            )
        except ValueError as error:
            before = f"; delivered before: {count(delivered, 'report')}" if delivered else ""
            raise UsageError(f"{error}{before}") from None
    for rejection in result.rejected:
        click.echo(f"measurement {rejection.index + 1}: {rejection.reason}", err=True)
    click.echo(f"Uploaded {count(result.accepted, 'report')}, {len(result.rejected)} rejected.")
    if result.rejected:
        raise click.exceptions.Exit(1)


def _parsed(vdaf: VdafConfiguration, texts: Iterable[str]) -> Iterator[Measurement]:
    from dapd.vdaf import parse_measurement

    for number, text in enumerate(texts, 1):
        if not text.strip():
            continue
        try:
            yield parse_measurement(vdaf, text)
        except ValueError as error:
            raise ValueError(f"measurement {number}: {error}") from None


@contextmanager
def _progress_bar(total: int | None) -> Iterator[Callable[[int], None]]:
    """Show a progress bar on standard error, if that is a terminal."""
    if not sys.stderr.isatty():
        yield lambda _: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (TextColumn("uploading"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        row = bar.add_task("upload", total=total)
        yield lambda sent: bar.advance(row, sent)
