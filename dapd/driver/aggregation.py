"""Step a Leader's aggregation job: start it, or exchange with the Helper and commit.

Sections "Leader Initialization" and "Asynchronous Request Handling"; rules A5, A7, B5,
B6, D4, D5, E1. A start computes and commits in a slot; an exchange runs outside, under the peer's
permit. Left out: what an answer means (``dapd.protocol.exchange``).
"""

from __future__ import annotations

import secrets
from dataclasses import replace
from typing import assert_never

import structlog

from dapd.commits.create_jobs import JOB_ID_SIZE
from dapd.commits.leader_jobs import (
    Halves,
    Result,
    batch_takes_no_more,
    count_send,
    dissolve_job,
    expire_job,
    finish_job,
    give_up_refused_job,
    halve_job,
    release_job,
    start_job,
)
from dapd.datastore import Tx, chunks, leader_jobs
from dapd.datastore.chunks import StoredChunk
from dapd.datastore.leader_jobs import Job, LeaseLost
from dapd.datastore.leases import Lease
from dapd.driver.step import Step, likely_cause_of, moment
from dapd.errors import DecodeError
from dapd.http import resource_url
from dapd.messages.aggregation import aggregation_job_init_req
from dapd.messages.common import MediaType
from dapd.protocol.exchange import GivenUp, Later, Unusable
from dapd.protocol.outcome import Outcome, Ready, Refused
from dapd.protocol.states import LeaderJobState
from dapd.protocol.task import Instant, Task
from dapd.reports import leader_finish, leader_start
from dapd.runtime.context import Context
from dapd.runtime.deletion import delete_job
from dapd.wording import duration

_log = structlog.get_logger()
_NO_LOCATION_EVERY = 86_400.0


async def run(context: Context, step: Step) -> None:
    """Take one leased job a step further; the step's commit ends or releases the lease."""
    try:
        match step.lease.due.state:
            case LeaderJobState.ASSIGNED:
                await _start(context, step)
            case LeaderJobState.STORED:
                await _send(context, step)
            case LeaderJobState.POLLING:
                await _poll(context, step)
            case state:
                raise AssertionError(f"a job in state {state} was leased")
    except LeaseLost as lost:
        context.metrics.leases_lost.inc()
        _log.info("lease_lost", detail=str(lost))


async def _start(context: Context, step: Step) -> None:
    """Compute and store the request (I3), and send it under the same lease if a permit is free."""
    lease, task = step.lease, step.task
    async with step.slots:
        job, held, doomed = await context.read(_load, lease, task, context.instant())
        if doomed:
            await context.run(dissolve_job, lease, job, context.now())
            _note_dissolved(context)
            return
        started = await context.compute(
            leader_start,
            task.parameters,
            context.rules(task),
            context.sealer,
            job.id,
            chunks.columns_of(held),
        )
        if not started.verify_inits:  # B6
            await _finish(context, step, replace(job, leader_state=started.state), b"")
            return
        request = aggregation_job_init_req(
            task.verification_key_id, job.batch_id, started.verify_inits
        )
        send = step.try_permit()
        await context.run(start_job, lease, request, started.state, context.now(), send)
    context.jobs.ring()  # a slot is free
    if not send:
        return
    stored = replace(
        job,
        state=LeaderJobState.STORED,
        sends=1,
        request=request,
        leader_state=started.state,
    )
    await _exchange(context, step, stored)


async def _send(context: Context, step: Step) -> None:
    """Send the stored bytes, for the first time or again (I3, I4)."""
    match await context.run(count_send, step.lease, step.task, context.instant()):
        case LeaderJobState.EXPIRED:
            _warn_expired()
        case LeaderJobState():
            _note_dissolved(context)
        case job:
            await _exchange(context, step, job)


async def _poll(context: Context, step: Step) -> None:
    """Ask the Helper for the result (section "Asynchronous Request Handling")."""
    at = context.instant()
    job = await context.read(leader_jobs.load, step.lease)
    if job.newest < step.task.expired_before_at(at):  # D6
        await context.run(expire_job, job.job_pk, at.now)
        _warn_expired()
        await _delete(context, step, job)
        return
    assert job.location is not None
    _log.debug("job_polled")
    outcome = await context.http.poll(
        job.location,
        _token(step),
        MediaType.AGGREGATION_JOB_RESP,
        step=0,  # A5
    )
    await _judge(context, step, job, outcome)


async def _exchange(context: Context, step: Step, job: Job) -> None:
    """Send the job's request to the Helper, and act on the answer."""
    assert job.request is not None
    _log.debug("job_sent", reports=job.n, sends=job.sends)
    endpoint = step.task.configuration.helper_aggregator_endpoint
    url = resource_url(endpoint, "tasks", step.task.id_text, "aggregation_jobs")
    outcome = await context.http.create(
        url,
        job.request,
        MediaType.AGGREGATION_JOB_INIT_REQ,
        _token(step),
    )
    await _judge(context, step, replace(job, request=None), outcome)


async def _judge(context: Context, step: Step, job: Job, outcome: Outcome | Unusable) -> None:
    """Act on the outcome of an exchange; the caller has dropped the request, to free its memory."""
    accepted = context.tasks.by_pk(job.task_pk).peer_accepted
    standing = job.standing(step.lease, accepted=accepted)
    match step.judge(context, standing, outcome):
        case Ready(body, location) as ready:
            job = replace(job, location=location or job.location)
            if job.location is None:
                _warn_no_location(context, step, ready.elsewhere)
            await _complete(context, step, job, body)
        case Refused() as refused:
            await _halve(context, step, job, refused.reason)
        case GivenUp() as given_up:
            await _give_up(context, step, job, given_up, likely_cause_of(outcome))
        case Later() as later:
            await context.run(release_job, step.lease, job.state, later)
            context.jobs.ring()
        case unexpected:
            assert_never(unexpected)


async def _complete(context: Context, step: Step, job: Job, response: bytes) -> None:
    """Finish the job with the Helper's response, then delete the job at the Helper (A7)."""
    try:
        async with step.slots:
            await _finish(context, step, job, response)
    except DecodeError as error:
        # B5, D4: we can't know what the Helper has stored, so the same bytes are sent again.
        unusable = Unusable(f"an AggregationJobResp that can't be used: {error}")
        await _judge(context, step, job, unusable)
        return
    await _delete(context, step, job)


async def _delete(context: Context, step: Step, job: Job) -> None:
    """Delete the job at the Helper, if its Location is known (A7)."""
    if job.location is not None:
        await delete_job(context, job.location, _token(step))


async def _finish(context: Context, step: Step, job: Job, response: bytes) -> None:
    """Compute and commit the outcome of every report.

    An empty ``response`` is for a job whose reports the Leader has all rejected itself. Raises
    ``DecodeError`` for a response that can't be used.
    """
    task = step.task
    assert job.leader_state is not None
    finished = await context.compute(
        leader_finish,
        task.parameters,
        context.sealer,
        job.id,
        job.batch_id or None,
        job.leader_state,
        response,
    )
    result = Result(finished.outcomes, finished.buckets, bool(response), moment(context).backoff)
    await context.run(finish_job, step.lease, job, result, context.now())
    context.metrics.succeeded("aggregation")
    accepted = finished.outcomes.count(0)
    _log.debug("job_finished", accepted=accepted, rejected=job.n - accepted)
    if response and not task.peer_accepted:
        context.tasks.note_peer_accepted(task)
    _ring(context)


async def _halve(context: Context, step: Step, job: Job, reason: str) -> None:
    """Split a job that the Helper has refused for good into two of half its size (D5)."""
    _log.warning("job_refused", reports=job.n, error=reason)
    ids = secrets.token_bytes(JOB_ID_SIZE), secrets.token_bytes(JOB_ID_SIZE)
    halves = Halves(ids, moment(context).backoff)
    await context.run(halve_job, step.lease, job, halves, reason, context.now())
    _ring(context)
    await _delete(context, step, job)


async def _give_up(
    context: Context, step: Step, job: Job, given_up: GivenUp, likely_cause: str
) -> None:
    """Abandon a job that the Helper has refused for too long (D4), then let the Helper know."""
    refused = f"refused for {duration(given_up.ms)}, at last with: {given_up.reason}"
    lost = await context.run(
        give_up_refused_job, step.lease, job.state, given_up.sends, refused, context.now()
    )
    _log.error(
        "job_given_up",
        reports=lost,
        sends=job.sends,
        error=refused,
        likely_cause=likely_cause,
        effect="its reports are counted as lost; if the Helper has aggregated them, a collection "
        "of their batch fails with batchMismatch",
        remedy="fix this with the Helper's operator before more jobs are given up; see `dapd task "
        "counters`",
    )
    _ring(context)
    await _delete(context, step, job)


def _load(tx: Tx, lease: Lease, task: Task, at: Instant) -> tuple[Job, list[StoredChunk], bool]:
    job = leader_jobs.load(tx, lease)
    return job, chunks.of_job(tx, lease.pk), batch_takes_no_more(tx, task, job, at)


def _ring(context: Context) -> None:
    """Wake the dispatcher, as collections may be ready now, and the creator, as reports may wait
    for another job and batches may have room.
    """
    context.jobs.ring()
    context.chunks.ring()


def _token(step: Step) -> str:
    assert step.task.aggregator_token is not None, "a Leader's task has a token for its Helper"
    return step.task.aggregator_token


def _warn_no_location(context: Context, step: Step, given: str | None) -> None:
    """Warn once a day for each Helper; the result is complete all the same."""
    endpoint = step.task.configuration.helper_aggregator_endpoint
    if context.seldom.due(f"no_location {endpoint}", _NO_LOCATION_EVERY):
        _log.warning(
            "job_stays",
            location=given,
            effect="the Leader can't delete finished jobs at the Helper, which keeps each until it "
            "expires",
            remedy="ask the Helper's operator to make it, or the proxy in front of it, send a "
            f"Location below {endpoint} with each answer to a job",
        )


def _warn_expired() -> None:
    _log.error(
        "job_expired",
        effect="its reports expired before they were aggregated",
        remedy="see this job's `job_waits` lines; if the Helper can be away for long, set a longer "
        "report_expiry_age",
    )


def _note_dissolved(context: Context) -> None:
    _log.info(
        "job_dissolved",
        effect="its batch takes no more reports, so they wait for another one",
    )
    _ring(context)
