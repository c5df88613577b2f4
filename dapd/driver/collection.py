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
from dapd.commits.collection_finish import collection_finish, collection_refused
from dapd.commits.cut import Failed, advance
from dapd.commits.freeze import BatchChangedError, freeze
from dapd.crypto import Sealer, collection_share_aad
from dapd.datastore import collections, leases
from dapd.datastore.collections import CollectionJob, FrozenBatch, NextExchange
from dapd.driver.desk import Desk
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


async def step(context: Context, desk: Desk) -> None:
    """Step a collection job once, and on to its exchange if the peer has a permit free."""
    if desk.lease.due.state != "waiting":
        await _exchange(context, desk)
    elif await _advance(context, desk):
        if desk.try_permit():
            await _exchange(context, desk)
        else:
            await context.run(leases.release, desk.lease, context.now(), reset_attempts=True)


async def _advance(context: Context, desk: Desk) -> bool:
    """Make the next move of a waiting job; whether it is frozen now, and still leased."""
    async with desk.slots:
        at = context.instant()
        look_again = at.now + _LOOK_AGAIN_MS
        move = await context.run(advance, desk.lease, desk.task, at, look_again)
        match move:
            case None | Wait():
                return False
            case FixCut():
                context.chunks.ring()  # the creator flushes what stands up to the cut (C3, C6)
                return False
            case Failed(job_id):
                context.finished.announce(("collection", job_id))
                return False
            case Freeze(batch):
                return await _freeze(context, desk, batch)
            case _:
                assert_never(move)


async def _freeze(context: Context, desk: Desk, batch: BucketRange) -> bool:
    lease, task = desk.lease, desk.task
    # Summed in a reader, so that the writer goes on; the freeze sees that nothing was added since.
    total = await context.read(batch_total, task, context.sealer, batch)
    job = await context.read(collections.by_pk, lease.pk)
    frozen = frozen_batch(task, context.sealer, job, batch, total)
    try:
        held = await context.run(freeze, lease, task, frozen, total.extent, context.instant())
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


async def _exchange(context: Context, desk: Desk) -> None:
    lease, task = desk.lease, desk.task
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
    desk.note_peer(context, outcome)
    await _take(context, desk, job, outcome)


async def _take(context: Context, desk: Desk, job: CollectionJob, outcome: Outcome) -> None:
    match outcome:
        case Ready(body):
            await _finish(context, desk, job, body)
        case Processing(location, retry_after):
            attempts = desk.lease.due.attempts + 1 if retry_after is None else 0
            wait = _wait_ms(context, attempts, retry_after)
            await _ask_later(context, desk, _Later(location, wait, attempts))
        case Refused(type=str() as error, detail=detail) if error in FINAL_REFUSALS:  # D4
            async with desk.slots:
                await context.run(collection_refused, desk.lease, desk.task, error, detail)
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
            attempts = desk.lease.due.attempts + 1
            wait = _wait_ms(context, attempts, None)
            # Whatever the Location stood for, the stored bytes find the share by its identity.
            await _ask_later(context, desk, _Later(None, wait, attempts, reason))
        case Unknown(reason, status, retry_after):
            _log.warning("exchange_failed", status=status, error=reason)
            attempts = desk.lease.due.attempts + (0 if outcome.busy else 1)  # E1
            wait = _wait_ms(context, max(attempts, 1), retry_after)
            await _ask_later(context, desk, _Later(job.location, wait, attempts, reason))
        case _:
            assert_never(outcome)


async def _finish(context: Context, desk: Desk, job: CollectionJob, body: bytes) -> None:
    try:
        helper_share = AggregateShare.decode(body).encrypted_aggregate_share
    except DecodeError as error:
        await _take(context, desk, job, Unknown(f"the answer is no AggregateShare: {error}", 200))
        return
    async with desk.slots:
        response = await context.compute(
            collection_response, desk.task, context.sealer, job, helper_share
        )
        if not await context.run(collection_finish, desk.lease, response):
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


async def _ask_later(context: Context, desk: Desk, later: _Later) -> None:
    run_at = context.now() + later.wait_ms
    following = NextExchange(later.location, run_at, later.attempts, later.error)
    await context.run(collections.ask_later, desk.lease, following)


def _wait_ms(context: Context, attempts: int, retry_after: float | None) -> int:
    limits = context.config.leader
    if retry_after is not None:
        return int(min(max(retry_after, limits.poll_min), limits.poll_max) * 1000)
    return backoff_ms(attempts, limits.retry_min, limits.retry_max, context.jitter())


def _ended(context: Context, job: CollectionJob) -> None:
    context.finished.announce(("collection", job.id))
    context.chunks.ring()  # its batch is collected or open again: later chunks move on (C2)
