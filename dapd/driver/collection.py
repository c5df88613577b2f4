"""The step of a Leader's collection job: wait for the batch, freeze it, ask the Helper, finish.

A waiting job is moved on by what it waits for: uploads and finished jobs touch it, its own
``run_at`` is a fallback. Exchanges hold a permit of the peer and no slot (I5); the stored bytes are
sent until the answer is final (I4, rule D4). Section "Obtaining Aggregate Shares".
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import assert_never

import structlog

from dapd.commits.batch_total import BatchTotal, batch_total
from dapd.commits.collections import (
    BatchChangedError,
    Failed,
    advance_collection,
    finish_collection,
    freeze_collection,
    refuse_collection,
)
from dapd.crypto import Sealer, collection_share_aad
from dapd.datastore import collections, leases
from dapd.datastore.collections import CollectionJob, FrozenBatch, NextExchange
from dapd.driver.step import Step
from dapd.errors import DecodeError
from dapd.http import Outcome, Processing, Ready, Refused, Unknown, resource_url
from dapd.messages.collection import (
    AggregateShare,
    AggregateShareReq,
    BatchSelector,
    CollectionJobReq,
    CollectionJobResp,
)
from dapd.messages.common import HpkeCiphertext, Interval, MediaType
from dapd.protocol.batches import BucketRange
from dapd.protocol.collect import (
    FINAL_REFUSALS,
    FixCut,
    Freeze,
    Wait,
    encrypt_aggregate_share,
)
from dapd.protocol.leader import likely_cause
from dapd.protocol.retry import backoff_ms
from dapd.protocol.task import Task
from dapd.runtime.context import Context

_log = structlog.get_logger()
_LOOK_AGAIN_MS = 60_000


async def run(context: Context, step: Step) -> None:
    """Step a collection job once, and on to its exchange if the peer has a permit free."""
    if step.lease.due.state != "waiting":
        await _exchange(context, step)
    elif await _advance(context, step):
        if step.try_permit():
            await _exchange(context, step)
        else:
            await context.run(leases.release, step.lease, context.now(), reset_attempts=True)


async def _advance(context: Context, step: Step) -> bool:
    """Make the next move of a waiting job; whether it is frozen now, and still leased."""
    async with step.slots:
        at = context.instant()
        look_again = at.now + _LOOK_AGAIN_MS
        move = await context.run(advance_collection, step.lease, step.task, at, look_again)
        match move:
            case None | Wait():
                return False
            case FixCut():
                context.chunks.ring()  # the creator flushes what stands up to the cut (C3, C6)
                return False
            case Failed(job_id):
                context.job_ended(("collection", job_id))
                return False
            case Freeze(batch):
                return await _freeze(context, step, batch)
            case _:
                assert_never(move)


async def _freeze(context: Context, step: Step, batch: BucketRange) -> bool:
    lease, task = step.lease, step.task
    # Summed in a reader, so that the writer goes on; the freeze sees that nothing was added since.
    total = await context.read(batch_total, task, context.sealer, batch)
    job = await context.read(collections.by_pk, lease.pk)
    frozen = frozen_batch(task, context.sealer, job, batch, total)
    try:
        held = await context.run(
            freeze_collection, lease, task, frozen, total.extent, context.instant()
        )
    except BatchChangedError:
        await context.run(leases.release, lease, context.now())
        return False
    context.chunks.ring()
    context.jobs.ring()
    return held


def frozen_batch(
    task: Task, sealer: Sealer, job: CollectionJob, batch: BucketRange, total: BatchTotal
) -> FrozenBatch:
    """The exact AggregateShareReq (I3), and the Leader's share sealed (rule F3)."""
    request = CollectionJobReq.decode(job.request)
    share_request = AggregateShareReq(
        request,
        BatchSelector(request.query.batch_interval or batch.lo),
        total.n,
        total.checksum,
    )
    sealed = sealer.seal(collection_share_aad(task.task_id, job.id), total.share)
    return FrozenBatch(
        *batch, share_request.encode(), sealed, total.n, total.time_min, total.time_max
    )


async def _exchange(context: Context, step: Step) -> None:
    lease, task = step.lease, step.task
    job = await context.read(collections.by_pk, lease.pk)
    assert task.aggregator_token is not None
    if job.location is not None:
        outcome = await context.http.poll(
            job.location, task.aggregator_token, MediaType.AGGREGATE_SHARE
        )
    elif await context.run(collections.note_send, lease):  # D4: counted before it is sent
        assert job.share_request is not None
        outcome = await context.http.create(
            resource_url(
                task.configuration.helper_aggregator_endpoint,
                "tasks",
                task.id_text,
                "aggregate_shares",
            ),
            job.share_request,
            MediaType.AGGREGATE_SHARE_REQ,
            task.aggregator_token,
        )
    else:
        return
    step.note_peer(context, outcome)
    await _take(context, step, job, outcome)


async def _take(context: Context, step: Step, job: CollectionJob, outcome: Outcome) -> None:
    match outcome:
        case Ready(body):
            await _finish(context, step, job, body)
        case Processing(location, retry_after):
            attempts = step.lease.due.attempts + 1 if retry_after is None else 0
            wait = _wait_ms(context, attempts, retry_after)
            await _ask_later(context, step, _Later(location, wait, attempts))
        case Refused(type=str() as error, detail=detail) if error in FINAL_REFUSALS:  # D4
            async with step.slots:
                await context.run(refuse_collection, step.lease, step.task, error, detail)
            context.metrics.collections_refused.labels(error).inc()
            _log.error(
                "collection_refused",
                error=error,
                detail=detail,
                remedy="the Collector is told; compare `dapd task counters` with the Helper's "
                "operator",
            )
            _ended(context, job)
        case Refused(status, error, reason=reason):
            _log.error(
                "job_waits",
                sends=job.sends,
                error=reason,
                likely_cause=likely_cause(status, error),
                remedy="mend that with the Helper's operator, then `dapd jobs retry`",
            )
            attempts = step.lease.due.attempts + 1
            wait = _wait_ms(context, attempts, None)
            # Whatever the Location stood for, the stored bytes find the share by its identity.
            await _ask_later(context, step, _Later(None, wait, attempts, reason))
        case Unknown(reason, status, retry_after):
            _log.warning("exchange_failed", status=status, error=reason)
            attempts = step.lease.due.attempts + (0 if outcome.busy else 1)  # E1
            wait = _wait_ms(context, max(attempts, 1), retry_after)
            await _ask_later(context, step, _Later(job.location, wait, attempts, reason))
        case _:
            assert_never(outcome)


async def _finish(context: Context, step: Step, job: CollectionJob, body: bytes) -> None:
    try:
        helper_share = AggregateShare.decode(body).encrypted_aggregate_share
    except DecodeError as error:
        await _take(context, step, job, Unknown(f"the answer is no AggregateShare: {error}", 200))
        return
    async with step.slots:
        response = await context.compute(
            collection_response, step.task, context.sealer, job, helper_share
        )
        if not await context.run(finish_collection, step.lease, response):
            context.metrics.leases_lost.inc()
            return
    context.metrics.succeeded("collection")
    _log.info("collection_finished", reports=job.n)
    _ended(context, job)


def collection_response(
    task: Task, sealer: Sealer, job: CollectionJob, helper_share: HpkeCiphertext
) -> bytes:
    """The encoded CollectionJobResp, with the Leader's share sealed to the Collector."""
    assert job.leader_share is not None
    assert job.n is not None
    assert job.time_min is not None
    assert job.time_max is not None
    share = sealer.open(collection_share_aad(task.task_id, job.id), job.leader_share)
    return CollectionJobResp(
        job.n,
        Interval(job.time_min, job.time_max + 1 - job.time_min),  # C7
        encrypt_aggregate_share(task, CollectionJobReq.decode(job.request), share),
        helper_share,
    ).encode()


@dataclass(frozen=True, slots=True)
class _Later:
    """What ``NextExchange`` says, with a wait in ms from now."""

    location: str | None
    wait_ms: int
    attempts: int
    error: str | None = None


async def _ask_later(context: Context, step: Step, later: _Later) -> None:
    run_at = context.now() + later.wait_ms
    following = NextExchange(later.location, run_at, later.attempts, later.error)
    await context.run(collections.ask_later, step.lease, following)


def _wait_ms(context: Context, attempts: int, retry_after: float | None) -> int:
    limits = context.config.leader
    if retry_after is not None:
        return int(min(max(retry_after, limits.poll_min), limits.poll_max) * 1000)
    return backoff_ms(attempts, limits.retry_min, limits.retry_max, context.jitter())


def _ended(context: Context, job: CollectionJob) -> None:
    context.job_ended(("collection", job.id))
    context.chunks.ring()  # its batch is collected or open again: later chunks move on (C2)
