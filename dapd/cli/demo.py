"""``dapd demo``: run ``dapd.demo`` and print what happens, on a terminal or as plain lines."""

from __future__ import annotations

import re
import shutil
import tempfile
import textwrap
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import zip_longest
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from dapd.cli.collect import bars
from dapd.errors import UsageError

if TYPE_CHECKING:
    from rich.console import Console

    from dapd.demo import Demo
    from dapd.demo.questions import Outcome, Question
    from dapd.demo.view import Role

_CHART_WIDTH = 24
_SHOWN = frozenset(
    {
        "listening",
        "job_sent",
        "job_stored",
        "job_processing",
        "job_polled",
        "job_verified",
        "job_finished",
        "aggregate_share_made",
        "collection_finished",
    }
)
"""Log events to show; of each, only the first line per question and Aggregator."""
_COLOURS = {"leader": "blue", "helper": "magenta"}
_HIDDEN_FIELDS = frozenset(
    {
        "timestamp",
        "level",
        "event",
        "task_id",
        "job_id",
        "kind",
        "request_id",
        "host",
        "version",
    }
)


@click.command()
@click.option(
    "--clients",
    type=click.IntRange(2, 1_000_000),
    default=1000,
    show_default=True,
    help="How many clients upload a report to each task.",
)
@click.option(
    "--seed",
    type=int,
    default=2018,
    show_default=True,
    help="Seed of the random answers; the same seed gives the same results.",
)
@click.option(
    "--keep",
    type=click.Path(file_okay=False, path_type=Path),
    metavar="DIR",
    help="Keep all files in this directory: configurations, task files, databases, logs. It must "
    "be new or empty.",
)
def demo(clients: int, seed: int, keep: Path | None) -> None:
    """Run a demo: a Leader, a Helper, 1,000 clients and a collector.

    Starts both Aggregators on this machine, as processes with databases of their own. The clients
    answer two questions, the collector collects both results, and the demo compares them with the
    true totals. The exit status is 1 if anything differs. The demo needs no configuration, and
    removes its files at the end.

    \b
    Example:
      dapd demo --clients 100000 --keep demo
    """
    from rich.console import Console

    from dapd.demo import Demo
    from dapd.demo.view import DemoFailed

    console = Console(highlight=False)
    directory = _directory(keep)
    view = _Screen(console, clients)
    running = Demo(directory, clients, seed, view)
    failed = True
    try:
        view.summary(running, running.run())
        failed = False
    except DemoFailed as failure:
        _show_failure(console, running, failure)
        raise click.exceptions.Exit(1) from None
    except KeyboardInterrupt:
        failed = False
        raise click.Abort from None
    finally:
        if keep is None and not failed:
            shutil.rmtree(directory)
        else:
            console.print(f"\nAll files are in [bold]{directory}[/].", soft_wrap=True)


def _directory(keep: Path | None) -> Path:
    if keep is None:
        return Path(tempfile.mkdtemp(prefix="dapd-demo-"))
    try:
        keep.mkdir(parents=True, exist_ok=True)
        if any(keep.iterdir()):
            raise UsageError(f"--keep {keep}: the directory is not empty; give a new one")
    except OSError as error:
        raise UsageError(f"--keep {keep}: {error.strerror}; give another directory") from None
    return keep.resolve()


def _show_failure(console: Console, running: Demo, failure: Exception) -> None:
    from rich.markup import escape

    console.print(f"\n[bold red]✗ The demo failed:[/] {escape(str(failure))}", soft_wrap=True)
    for daemon in running.daemons:
        if daemon.tail:
            console.print(f"\n[bold]The end of the {daemon.role}'s log[/]")
            for line in daemon.tail:
                console.print(line, markup=False, style="dim", soft_wrap=True)


class _Screen:
    """The demo's view: prints each step as it happens, with progress bars on a terminal."""

    def __init__(self, console: Console, clients: int) -> None:
        self._console = console
        self._clients = clients
        self._seen: set[tuple[str, str]] = set()
        self._number = 0
        self._jobs = 0

    def setting_up(self) -> None:
        self._heading(
            "A Leader and a Helper",
            "Two processes, two databases, set up with an operator's commands.",
        )

    def command(self, line: str) -> None:
        whole = re.sub("(--[a-z-]+) (?!-)", "\\1\N{NO-BREAK SPACE}", line)
        parts = textwrap.wrap(
            whole, self._console.width - 8, break_long_words=False, break_on_hyphens=False
        )
        text = " \\\n      ".join(parts).replace("\N{NO-BREAK SPACE}", " ")
        self._console.print(f"  $ {text}", markup=False, style="cyan", soft_wrap=True)

    def ready(self, seconds: float) -> None:
        self._done(f"both serve after {seconds:.1f} s")

    def asking(self, question: Question) -> None:
        self._seen.clear()
        self._jobs = 0
        self._number += 1
        kind = question.vdaf.partition(":")[0]
        helper = {"async": "an asynchronous", "sync": "a synchronous"}[question.helper_mode]
        self._heading(
            f"{self._number}. {question.text}",
            f"A {kind} of {self._clients:,} answers, {question.batch_mode}, with {helper} Helper.",
        )

    def log(self, role: Role, line: dict[str, Any]) -> None:
        from rich.text import Text

        event, level = line["event"], line["level"]
        self._jobs += event == "job_finished"
        trouble = level not in ("debug", "info")
        if not trouble and (event not in _SHOWN or (role, event) in self._seen):
            return
        self._seen.add((role, event))
        text = Text("  ")
        text.append(role, style="red" if trouble else _COLOURS[role])
        text.append(f" {line['timestamp'][11:23]} ", style="dim")
        text.append(f"{event:20} ")
        about = " ".join(
            f"{key}={value}" for key, value in line.items() if key not in _HIDDEN_FIELDS
        )
        text.append(about, style="dim")
        text.rstrip()
        self._console.print(text, soft_wrap=True)

    @contextmanager
    def progress(self, what: str, total: int | None) -> Iterator[Callable[[], None]]:
        if not self._console.is_terminal:
            yield lambda: None
            return
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
        from rich.progress import TimeElapsedColumn as Elapsed

        counted = [MofNCompleteColumn()] if total else []
        columns = (TextColumn("  {task.description}"), BarColumn(), *counted, Elapsed())
        with Progress(*columns, console=self._console, transient=True) as bar:
            row = bar.add_task(what, total=total)
            yield lambda: bar.advance(row)

    def outcome(self, outcome: Outcome) -> None:
        question, value, truth = outcome.question, outcome.result.value, outcome.truth
        if self._jobs > 1:
            self._console.print(f"  [dim]... and so on, {self._jobs} aggregation jobs in all[/]")
        self._console.print()
        if isinstance(value, list) and isinstance(truth, list):
            for line in _beside(value, truth, question.unit):
                self._console.print(line, markup=False)
        else:
            self._console.print(f"  {'collected':12}[bold green]{value:,}[/] {question.unit}")
            self._console.print(f"  {'the truth':12}[bold]{truth:,}[/] {question.unit}")
        self._console.print()
        if outcome.difference(self._clients) is None:
            self._done(
                f"equal: {outcome.result.report_count:,} reports, uploaded in"
                f" {outcome.upload_seconds:.1f} s, collected {outcome.collect_seconds:.1f} s later"
            )

    def stopped(self, seconds: float) -> None:
        self._heading("Both have stopped", f"In order, after {seconds:.1f} s.")

    def summary(self, running: Demo, outcomes: list[Outcome]) -> None:
        """Print a table that compares the questions, with numbers counted from the logs."""
        from rich.table import Table

        def logged(outcome: Outcome, event: str, daemon: int = 0) -> str:
            task_id = running.task_ids[outcome.question.name]
            return f"{running.daemons[daemon].counts[task_id, event]:,}"

        rows: dict[str, Callable[[Outcome], str]] = {
            "reports": lambda each: f"{each.result.report_count:,}",
            "uploads a second": lambda each: f"{self._clients / each.upload_seconds:,.0f}",
            "aggregation jobs": lambda each: logged(each, "job_finished"),
            'answered "processing"': lambda each: logged(each, "job_processing"),
            "polls": lambda each: logged(each, "job_polled"),
            "uploaded in": lambda each: f"{each.upload_seconds:.1f} s",
            "collected after": lambda each: f"{each.collect_seconds:.1f} s",
        }
        table = Table(box=None, pad_edge=False, padding=(0, 4, 0, 0), header_style="bold")
        table.add_column("")
        for outcome in outcomes:
            table.add_column(outcome.question.name, justify="right")
        for name, value in rows.items():
            table.add_row(f"  {name}", *map(value, outcomes))
        self._console.print(table)
        self._console.print()
        self._done("Both results are exact, and neither Aggregator saw anyone's answer.")

    def _heading(self, text: str, about: str) -> None:
        self._console.print(f"\n[bold]{text}[/]\n  [dim]{about}[/]\n")

    def _done(self, text: str) -> None:
        self._console.print(f"  [bold green]✓[/] {text}")


def _beside(collected: list[int], truth: list[int], unit: str) -> Iterator[str]:
    """Draw both charts side by side."""
    left = list(bars(collected, _CHART_WIDTH))
    right = list(bars(truth, _CHART_WIDTH))
    width = max(map(len, left)) + 6
    yield f"  {f'collected, by {unit}':{width}}the truth"
    for one, other in zip_longest(left, right, fillvalue=""):
        yield f"  {one:{width}}{other}".rstrip()
