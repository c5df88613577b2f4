"""``dapd jobs``: list, show, retry and abandon the running daemon's jobs."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, get_args

import click

from dapd.cli.output import AS_JSON, age, load_config, moment, tell
from dapd.wording import count

if TYPE_CHECKING:
    from collections.abc import Iterator

    from dapd.admin.job_view import JobDetail, JobView

_JOB = click.argument("job", metavar="JOB")
# A resource's id may begin with a dash, like an option.
_TAKES_ANY_NAME = {"ignore_unknown_options": True}


@click.group()
def jobs() -> None:
    """Aggregation and collection jobs of a running daemon.

    JOB is a name such as a12 or c3, as `jobs list` shows it, or the id of the job's resource.
    """


@jobs.command("list")
@click.option(
    "--task", metavar="ID", help="Only this task's jobs; the beginning of its id is enough."
)
@click.option(
    "--state", metavar="STATE", help="Only jobs in this state, such as stored, polling or lost."
)
@click.option(
    "--limit",
    type=click.IntRange(1, 1000),
    default=50,
    show_default=True,
    help="List at most so many.",
)
@click.option("--all", "ended", is_flag=True, help="Include ended jobs, newest first.")
@click.option("--cursor", metavar="TEXT", help="Continue where the page before ended.")
@AS_JSON
@click.pass_obj
def list_jobs(config: Path | None, /, *, as_json: bool, **filters: str | int | bool | None) -> None:
    """List unfinished jobs, oldest first, with why each waits.

    \b
    Example:
      dapd jobs list --task 6Xf --state stored
    """
    import msgspec

    from dapd.admin.jobs import LIST, JobsRequest, State
    from dapd.cli.daemon import call
    from dapd.errors import UsageError

    try:
        request = msgspec.convert(filters, JobsRequest)
    except msgspec.ValidationError:
        states = ", ".join(get_args(State))
        raise UsageError(f"unknown state {filters['state']}; use one of {states}") from None
    found = call(load_config(config), LIST, request)
    lines = [_line(each) for each in found.jobs]
    if not lines:
        some = request.task or request.state or request.ended
        lines.append("No such job." if some else "There are no unfinished jobs.")
    if found.next is not None:
        lines.append(f"For more, repeat the command with --cursor {found.next}")
    tell(found, lines, as_json=as_json)


@jobs.command("show", context_settings=_TAKES_ANY_NAME)
@_JOB
@AS_JSON
@click.pass_obj
def show(config: Path | None, job: str, *, as_json: bool) -> None:
    """Show one job: why it waits, what to do, and all details.

    \b
    Example:
      dapd jobs show a12
    """
    from dapd.admin.jobs import SHOW, JobRequest
    from dapd.cli.daemon import call

    found = call(load_config(config), SHOW, JobRequest(job))
    tell(found, _details(found), as_json=as_json)


@jobs.command("retry", context_settings=_TAKES_ANY_NAME)
@_JOB
@AS_JSON
@click.pass_obj
def retry(config: Path | None, job: str, *, as_json: bool) -> None:
    """Make a job due now, instead of when its back-off ends.

    It sends the same request as before. It still waits for a peer that can't be reached; `dapd peer
    probe` ends that wait once the peer answers.

    \b
    Example:
      dapd jobs retry a12
    """
    from dapd.admin.jobs import RETRY, JobRequest
    from dapd.cli.daemon import call

    found = call(load_config(config), RETRY, JobRequest(job))
    tell(found, _details(found), as_json=as_json)


@jobs.command("abandon", context_settings=_TAKES_ANY_NAME)
@_JOB
@click.option(
    "--confirm", metavar="JOB", help="Repeat JOB; without this option the command asks for it."
)
@AS_JSON
@click.pass_obj
def abandon(config: Path | None, job: str, confirm: str | None, *, as_json: bool) -> None:
    """Give up an unfinished job of a Leader, for good.

    The reports of an aggregation job are lost: the Helper may have counted them, so they never go
    into another job. If it has, collections of their batch fail, since the two sides' counts
    differ. A collection job is deleted; if the Helper may have been asked for its share, the batch
    stays collected without a result. One that dapd has given up no longer keeps its batch for the
    same query, and the next one gets another batch.

    \b
    Example:
      dapd jobs abandon a12 --confirm a12
    """
    from dapd.admin.jobs import ABANDON, SHOW, AbandonRequest, JobRequest
    from dapd.cli.daemon import call

    loaded = load_config(config)
    if confirm is None:
        found = call(loaded, SHOW, JobRequest(job))
        click.echo("\n".join(_details(found)), err=True)
        confirm = click.prompt(
            "This can't be undone. To give the job up, type its name again", err=True
        )
    done = call(loaded, ABANDON, AbandonRequest(job, confirm))
    lines = [f"Job {done.job} is given up."]
    if done.lost and done.job.startswith("c"):
        lines.append(f"Lost: {count(done.lost, 'report')}, which no query can collect any more.")
    elif done.lost:
        lines += [
            f"Lost: {count(done.lost, 'report')}. The Helper may have counted them; then every",
            "collection of their batch fails with batchMismatch.",
        ]
    tell(done, lines, as_json=as_json)


def _line(job: JobView) -> str:
    reports = "-" if job.reports is None else count(job.reports, "report")
    return (
        f"{job.job:8} {job.state:9} {reports:>14}  task {job.task[:8]}  "
        f"{age(job.created_at)} old: {job.waits.text}"
    )


def _details(found: JobDetail) -> Iterator[str]:
    job, waits = found.job, found.job.waits
    yield f"Job {job.job}: {waits.text}."
    yield f"To do: {waits.remedy}." if waits.remedy else "Nothing to do."
    yield ""
    progress, peer = found.progress, found.peer
    told: dict[str, object] = {
        "kind": f"{job.kind}, {job.role}",
        "task": f"{job.task} ({found.task_state})",
        "id": job.id,
        "state": job.state,
        "reports": job.reports,
        "created": moment(job.created_at),
        "run at": moment(job.run_at),
        "held by a step until": found.leased_until and moment(found.leased_until),
        "failed attempts in a row": job.attempts,
        "sends of unknown outcome": job.sends,
        "crashes of the daemon": job.crashes,
        "last error": job.last_error,
        "location": found.location,
        "peer": peer and f"{peer.endpoint}, {peer.state}",
        "peer's requests": peer and f"{peer.exchanges} of {peer.permits} at once",
        "told to the Collector": ": ".join(filter(None, (found.error, found.detail))) or None,
        "aggregated": progress
        and f"{progress.aggregated} of at least {count(progress.needed, 'report')}",
        "undecided": progress
        and f"{count(progress.in_jobs, 'report')} in jobs, {progress.unassigned} in none yet",
    }
    for name, value in told.items():
        if value is not None:
            yield f"{name:26} {value}"
