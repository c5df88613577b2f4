"""``dapd doctor``: what is wrong, or will be, and what to do about each; it changes nothing.

Each module here has the checks of one subject (``dapd.cli.doctor.examination`` lists them). What a
healthy daemon is busy with is ``dapd status``'s to tell, damage in the database `dapd datastore
check`'s.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import click

from dapd.cli.output import AS_JSON

if TYPE_CHECKING:
    from dapd.cli.doctor.findings import Finding

_WORDS = {"ok": "ok", "warning": "WARN", "failure": "FAIL", "skipped": "skip"}
_CHECK_WIDTH = 13


@click.command()
@AS_JSON
@click.option("--offline", is_flag=True, help="Ask nobody: neither the own URL nor the peers.")
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
    """Look for what is wrong, and say what to do about it. Changes nothing.

    Before the daemon runs and while it does: configuration, keys, files, database, backups,
    certificates, clocks, tasks, this Aggregator's own URLs as others reach them, and its peers. Run
    it as root, or as the daemon's user, to have all of it looked at.

    The exit status is 1 if anything is wrong (FAIL); what will be (WARN) leaves it at 0.

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
    """Line by line, as they are found: some take their time."""
    counts: Counter[str] = Counter()
    for each in findings:
        counts[each.level] += 1
        for line in _lines(each):
            click.echo(line)
    failures, warnings = counts["failure"], counts["warning"]
    verdict = f"{failures} wrong, {warnings} to look at" if failures + warnings else "Nothing wrong"
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
