"""Step a Leader's collection job: wait for the batch, freeze it, ask the Helper, finish.

Uploads and finished aggregation jobs make the collections that wait for them due; a waiting job's
own ``run_at`` is only a fallback. Exchanges hold a permit of the peer and no slot (I5); the stored
bytes are sent until the answer is final (I4, rule D4). Section "Obtaining Aggregate Shares".
"""

from __future__ import annotations

from typing import assert_never

import structlog

from dapd.commits.batch_total import BatchTotal, batch_total
from dapd.commits.collections import (
    BatchChangedError,
    Failed,
    advance_collection,
    finish_collection,
    freeze_collection,
    give_up_collection,
    refuse_collection,
)
from dapd.crypto import Sealer, collection_share_aad
from dapd.datastore import collections, leases
from dapd.datastore.collections import CollectionJob, FrozenBatch
from dapd.driver.step import Step, likely_cause_of
from dapd.errors import DecodeError
from dapd.http import resource_url
from dapd.messages.collection import AggregateShare
from dapd.messages.common import HpkeCiphertext, MediaType
from dapd.protocol.batches import BucketRange
from dapd.protocol.collect import (
    FixCut,
    Freeze,
    Total,
    Wait,
    aggregate_share_req,
    collection_job_resp,
)
from dapd.protocol.exchange import GivenUp, Later, Unusable
from dapd.protocol.outcome import Outcome, Ready, Refused
from dapd.protocol.states import CollectionState
from dapd.protocol.task import Task
from dapd.runtime.context import Context
from dapd.wording import duration

_log = structlog.get_logger()
_LOOK_AGAIN_MS = 60_000


async def run(context: Context, step: Step) -> None:
    """Take one leased job a step further, and on to its exchange if the peer has a permit free."""
    if step.lease.due.state is not CollectionState.WAITING:
        await _exchange(context, step)
    elif await _advance(context, step):
        if step.try_permit():
            await _exchange(context, step)
        else:
            await context.run(leases.release, step.lease, context.now(), reset_attempts=True)


async def _advance(context: Context, step: Step) -> bool:
    """Make the next move of a waiting job. Return whether it is frozen now and still leased."""
    async with step.slots:
        at = context.instant()
        look_again = at.now + _LOOK_AGAIN_MS
        move = await context.run(advance_collection, step.lease, step.task, at, look_again)
        match move:
            case None | Wait():
                return False
            case FixCut():
                context.chunks.ring()  # the creator packs all chunks up to the cut (C3, C6)
                return False
            case Failed(job_id):
                context.job_ended(("collection", job_id))
                return False
            case Freeze(batch):
                return await _freeze(context, step, batch)
            case _:
                assert_never(move)


async def _freeze(context: Context, step: Step, batch: BucketRange) -> bool:
    """Sum and freeze the batch. Return whether that is done and the job is still leased."""
    lease, task = step.lease, step.task
    # Summed outside the writer's transaction; the freeze checks that nothing was added since.
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
    """Build what a freeze stores: the exact AggregateShareReq (I3) and the Leader's sealed share
    (rule F3).
    """
    share_request = aggregate_share_req(job.request, batch, total).encode()
    sealed = sealer.seal(collection_share_aad(task.task_id, job.id), total.share)
    return FrozenBatch(*batch, share_request, sealed, total.n, total.time_min, total.time_max)


async def _exchange(context: Context, step: Step) -> None:
    """Poll the Helper's share, or send the request for it, and act on the answer."""
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
    await _judge(context, step, job, outcome)


async def _judge(
    context: Context, step: Step, job: CollectionJob, outcome: Outcome | Unusable
) -> None:
    """Act on the outcome of an exchange."""
    match step.judge(context, job.standing(step.lease), outcome):
        case Ready(body):
            await _finish(context, step, job, body)
        case Refused() as refused:
            await _fail(context, step, job, refused)
        case GivenUp() as given_up:
            await _give_up(context, step, job, given_up, likely_cause_of(outcome))
        case Later() as later:
            await context.run(collections.ask_later, step.lease, later)
        case unexpected:
            assert_never(unexpected)


async def _fail(context: Context, step: Step, job: CollectionJob, refused: Refused) -> None:
    """End the job with the Helper's error, which the Collector then gets (D4)."""
    assert refused.type is not None, "only an error type of the draft is final"
    async with step.slots:
        await context.run(refuse_collection, step.lease, step.task, refused.type, refused.detail)
    context.metrics.collections_refused.labels(refused.type).inc()
    _log.error(
        "collection_refused",
        error=refused.type,
        detail=refused.detail,
        remedy="the Collector gets this error; compare `dapd task counters` with the Helper's "
        "operator",
    )
    _ended(context, job)


async def _give_up(
    context: Context, step: Step, job: CollectionJob, given_up: GivenUp, likely_cause: str
) -> None:
    """End the job with the Helper's error after long refusal, and keep what it asked with (D4)."""
    detail = (
        f"the Helper has refused its aggregate share for {duration(given_up.ms)}, at last with: "
        f"{given_up.reason}; repeat this query to go on with the batch"
    )
    error, at = (given_up.type, detail), context.instant()
    async with step.slots:
        held = await context.run(give_up_collection, step.lease, step.task, error, at)
    if not held:
        context.metrics.leases_lost.inc()
        return
    _log.error(
        "collection_given_up",
        error=given_up.type,
        detail=detail,
        reports=job.n,
        likely_cause=likely_cause,
        effect="the Collector gets this error; the batch takes no more reports, and is kept for "
        "the same query until its reports expire",
        remedy="fix this with the Helper's operator, then have the Collector repeat its query",
    )
    _ended(context, job)


async def _finish(context: Context, step: Step, job: CollectionJob, body: bytes) -> None:
    """Store the Collector's answer, made of both shares."""
    try:
        helper_share = AggregateShare.decode(body).encrypted_aggregate_share
    except DecodeError as error:
        unusable = Unusable(f"an AggregateShare that can't be used: {error}")
        await _judge(context, step, job, unusable)
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
    """Encode the CollectionJobResp, with the Leader's share encrypted to the Collector."""
    assert job.leader_share is not None
    assert job.n is not None
    assert job.time_min is not None
    assert job.time_max is not None
    share = sealer.open(collection_share_aad(task.task_id, job.id), job.leader_share)
    total = Total(job.n, b"", job.time_min, job.time_max, share)
    return collection_job_resp(task, job.request, total, helper_share).encode()


def _ended(context: Context, job: CollectionJob) -> None:
    context.job_ended(("collection", job.id))
    context.chunks.ring()  # the batch is collected or open again: later chunks can go on (C2)
