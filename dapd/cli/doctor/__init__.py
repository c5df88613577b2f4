"""``dapd doctor``: find what is wrong, or soon will be, and say how to fix it.

Each module has the checks of one subject; ``dapd.cli.doctor.examination`` runs them in order. Left
out: what a healthy daemon is doing (``dapd status``), and damage inside the database (``dapd
datastore check``).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import click

from dapd.cli.output import AS_JSON
from dapd.wording import count

if TYPE_CHECKING:
    from dapd.cli.doctor.findings import Finding

_WORDS = {"ok": "ok", "warning": "WARN", "failure": "FAIL", "skipped": "skip"}
_CHECK_WIDTH = 13


@click.command()
@AS_JSON
@click.option(
    "--offline", is_flag=True, help="Send no request to this Aggregator's own URLs or to the peers."
)
@click.option(
    "--timeout",
    "seconds",
    type=click.FloatRange(min=0, min_open=True, max=600),
    default=10.0,
    show_default=True,
    metavar="SECONDS",
    help="How long to wait for each answer.",
)
@click.pass_obj
def doctor(config: Path | None, *, as_json: bool, offline: bool, seconds: float) -> None:
    """Find what is wrong and say how to fix it. Changes nothing.

    Works with or without a running daemon. Checks configuration, keys, files, database, backups,
    certificates, clocks, tasks, this Aggregator's own URLs as others reach them, and its peers. Run
    it as root, or as the daemon's user; other users can't make all checks.

    Exits 1 if anything is wrong (FAIL). Warnings (WARN) alone leave the exit status 0.

    \b
    Example:
      sudo dapd doctor
    """
    from dapd.cli.doctor.examination import examine

    findings = examine(config, offline=offline, seconds=seconds)
    counts = _tell_json(findings) if as_json else _tell(findings)
    if counts["failure"]:
        raise click.exceptions.Exit(1)


def _tell(findings: Iterable[Finding]) -> Counter[str]:
    """Print each finding at once, since some checks take long."""
    counts: Counter[str] = Counter()
    for each in findings:
        counts[each.level] += 1
        for line in _lines(each):
            click.echo(line)
    failures, warnings = counts["failure"], counts["warning"]
    bad = f"{count(failures, 'failure')}, {count(warnings, 'warning')}"
    verdict = bad if failures + warnings else "Nothing wrong"
    click.echo(f"\n{verdict}, {counts['ok']} ok, {counts['skipped']} skipped.")
    return counts


def _tell_json(findings: Iterable[Finding]) -> Counter[str]:
    import msgspec

    found = tuple(findings)
    counts = Counter[str](each.level for each in found)
    document = {"counts": {level: counts[level] for level in _WORDS}, "findings": found}
    click.echo(msgspec.json.format(msgspec.json.encode(document), indent=2))
    return counts


def _lines(found: Finding) -> Iterator[str]:
    subject = f"{found.subject}: " if found.subject else ""
    name = found.check.replace("_", " ")
    yield f"{_WORDS[found.level]:4}  {name:{_CHECK_WIDTH}} {subject}{found.detail}"
    if found.remedy is not None:
        yield f"{'':6}{'':{_CHECK_WIDTH}} -> {found.remedy}"
