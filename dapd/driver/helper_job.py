"""A Helper's aggregation jobs: create, verify, commit, look up.

Sections "Helper Initialization" and "Asynchronous Request Handling". The HTTP handlers call
``create``, ``poll`` and ``find``; the dispatcher calls ``run`` for a job that was stored to be
verified later. Left out: HTTP (``dapd.server.aggregation_jobs``), the rules
(``dapd.protocol.helper``) and the transactions (``dapd.commits.helper_jobs``).
"""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Hashable
from dataclasses import dataclass
from functools import partial

import structlog
import trio
from structlog.contextvars import bind_contextvars

from dapd.commits.helper_jobs import VerifyAgainError, commit_job, store_job
from dapd.crypto import Keyring
from dapd.datastore import helper_jobs
from dapd.datastore.helper_jobs import JobKey, StoredJob
from dapd.datastore.leases import LEASE_MS
from dapd.datastore.sqlite import Tx
from dapd.driver.hold import hold
from dapd.driver.step import Step
from dapd.errors import Abort
from dapd.messages.common import b64url_encode
from dapd.protocol.helper import (
    InitRequest,
    check_step,
    judge_init,
    unknown_job,
    verifies_at_once,
)
from dapd.protocol.states import HelperJobState
from dapd.protocol.task import Task
from dapd.reports import HelperVerified, ReportError
from dapd.runtime.context import Context
from dapd.runtime.replay_room import require_replay_room

_log = structlog.get_logger()
_RENEWALS_PER_LEASE = 3
_REPLAYED_WHERE_KNOWN = bytes([0, ReportError.REPORT_REPLAYED]) + bytes(254)


@dataclass(frozen=True, slots=True)
class NewJob:
    """A job that is not stored yet; ``identity`` names its work in ``Context.work``."""

    task: Task
    key: JobKey
    body: bytes
    request: InitRequest
    identity: Hashable


async def create(context: Context, task: Task, body: bytes) -> StoredJob:
    """Create the job of this ``AggregationJobInitReq``, or return the one that an identical request
    created before. Whether it is finished depends on the Helper's mode and load.

    Raises ``Abort`` if the request is at fault, or if there is no room for new work.
    """
    expired_before = task.expired_before_at(context.instant())
    digest, found = await context.read(_examine, task, body, expired_before)
    if isinstance(found, StoredJob):
        return found  # A1: before admission
    identity = (task.task_pk, "aggregation_job", digest)
    running = context.work.joined(identity)  # A2
    if running is None:
        context.disk.require_space()  # E4
        require_replay_room(context, task)
        job = NewJob(task, _new_key(context, task, digest, found), body, found, identity)
        handle = _verify_now if _runs_at_once(context, job) else _store_for_later
        running = context.work.start(identity, partial(handle, context, job))
    joined: StoredJob = await running.wait()
    return joined


async def poll(context: Context, task: Task, job_id: bytes | None, step: str | None) -> StoredJob:
    """Return the job once it is finished, or as it is after ``poll_hold``. Raises ``Abort``."""

    async def checked() -> StoredJob:
        job = await find(context, task, job_id)
        check_step(step)
        return job

    return await hold(
        context,
        ("aggregation", job_id),
        checked,
        lambda job: job.state is HelperJobState.FINISHED,
        context.config.helper.poll_hold,
    )


async def find(context: Context, task: Task, job_id: bytes | None) -> StoredJob:
    """Return the job. Raises ``Abort`` if it is unknown or was deleted (rule A6)."""
    job = None
    if job_id is not None:
        expired_before = task.expired_before_at(context.instant())
        job = await context.read(helper_jobs.by_id, task.task_pk, job_id, expired_before)
    if job is None or job.state is HelperJobState.DELETED:
        raise unknown_job()
    return job


def retry_after(context: Context) -> float:
    """Return after how many seconds a job that waits or runs is likely to be finished."""
    return min(context.rates.ahead, context.config.helper.retry_after_max)


async def run(context: Context, step: Step) -> None:
    """Verify and commit a stored job, in a slot (rule E1); the commit ends the lease."""
    task, lease = step.task, step.lease
    async with step.slots:
        request = context.judged.get(lease.due.id)
        key = await context.read(helper_jobs.leased, task.task_pk, lease.pk, lease.token)
        if key is None:
            return  # deleted, or leased to another step
        if request is None:
            body = await context.read(helper_jobs.request_of, lease.pk)
            if body is None:
                return  # finished or deleted since
            request = await context.compute(judge_init, task, body)
        try:
            await verify_and_commit(context, task, key, request, stored=True)
        except Abort as abort:
            # A6: the Leader deleted the job while it was verified; nothing was admitted.
            _log.info("aggregation_job_gone", detail=abort.detail)


async def verify_and_commit(
    context: Context, task: Task, key: JobKey, request: InitRequest, *, stored: bool
) -> StoredJob:
    """Verify the job's reports and commit the outcome; ``stored`` as in ``commit_job``.

    Verify again if the transaction finds that the replay index, the closed batches or the task's
    mark have changed too much meanwhile. Raises ``Abort`` if the job was deleted.
    """
    context.rates.begin(key.id, task, key.n)
    try:
        keyring = await context.keyrings.for_ids(request.rows.config_ids)  # F1
        known = None
        while True:
            verified = await context.compute(_verify, context, task, key, request, keyring, known)
            if verified.seconds_per_report:  # 0: all reports were left out, nothing was measured
                context.rates.note(task, verified.seconds_per_report)
            try:
                job = await context.run(commit_job, key, verified, context.now(), stored=stored)
            except VerifyAgainError as disagreement:  # E3
                known = disagreement.known
                await context.tasks.refresh()
                task = context.tasks.by_pk(task.task_pk)  # its mark may have risen (D6)
            else:
                context.metrics.succeeded("aggregation")
                _log.debug("job_verified", reports=key.n, at_once=not stored)
                return job
    finally:
        context.job_ended(("aggregation", key.id))


def _examine(
    tx: Tx, task: Task, body: bytes, expired_before: int
) -> tuple[bytes, StoredJob | InitRequest]:
    """Look for the job of an identical request (A1), else check the request as a whole (A3).

    Both happen in one hop off the event loop. Returns the request's digest, and what was found.
    """
    digest = hashlib.sha256(body).digest()
    existing = helper_jobs.by_identity(tx, task.task_pk, digest, expired_before)
    return digest, existing or judge_init(task, body)


def _new_key(context: Context, task: Task, digest: bytes, request: InitRequest) -> JobKey:
    at = context.instant()
    expired_before = task.expired_before_at(at)
    # D6: a rejected report may have any time; that must not keep the job for ever.
    latest = task.too_early_after_at(at)
    return JobKey(
        task_pk=task.task_pk,
        id=secrets.token_bytes(16),
        request_hash=digest,
        n=request.rows.count,
        bucket=request.batch_id or b"",
        lease_token=secrets.token_bytes(16),
        # The mark of a task that was deleted and added again may be ahead of the clock.
        newest=max(min(request.rows.time_max, latest), expired_before),
        expired_before=expired_before,
    )


def _runs_at_once(context: Context, job: NewJob) -> bool:
    settings, rates = context.config.helper, context.rates
    return verifies_at_once(
        job.task.settings.helper_mode or settings.mode,
        rates.ahead,
        rates.estimate(job.task, job.key.n),
        settings.auto_sync_seconds,
    )


async def _store_for_later(context: Context, job: NewJob) -> StoredJob:
    """Store the job and answer (async); ``run`` verifies it later."""
    bind_contextvars(job_id=b64url_encode(job.key.id))
    stored = await context.run(store_job, job.key, job.body, context.now())
    if stored.id == job.key.id:
        _log.debug("job_stored", reports=job.key.n)
        context.rates.begin(stored.id, job.task, job.key.n)
        context.judged.keep(stored.id, job.request, len(job.body))
        context.jobs.ring()
    return stored


async def _verify_now(context: Context, job: NewJob) -> StoredJob:
    """Verify the job before answering (sync), or answer after ``sync_wait`` and go on (rule A2)."""
    bind_contextvars(job_id=b64url_encode(job.key.id))
    failure: Exception | None = None
    async with trio.open_nursery() as nursery:
        nursery.start_soon(_answer_late, context, job)
        try:
            return await verify_and_commit(context, job.task, job.key, job.request, stored=False)
        except trio.Cancelled:
            with trio.CancelScope(shield=True):  # I8: if stored, it is due for the next process
                await context.run(helper_jobs.release_lease, job.key, context.now())
            raise
        except Exception as error:  # noqa: BLE001 - raised below: a nursery would wrap it in a group
            failure = error
        finally:
            nursery.cancel_scope.cancel()
    await context.run(helper_jobs.release_lease, job.key, context.now())
    context.jobs.ring()
    raise failure


async def _answer_late(context: Context, job: NewJob) -> None:
    """After ``sync_wait``, store the job and answer "processing"; then keep the job leased.

    The task that verifies the job cancels this one when it is done.
    """
    await trio.sleep(context.config.helper.sync_wait)
    until = context.now() + LEASE_MS
    stored = await context.run(store_job, job.key, job.body, context.now(), lease_until=until)
    context.work.answer(job.identity, stored)  # I2: only now
    while True:
        await trio.sleep(LEASE_MS / 1000 / _RENEWALS_PER_LEASE)
        await context.run(helper_jobs.renew_lease, job.key, context.now() + LEASE_MS)  # E2


def _verify(
    context: Context,
    task: Task,
    key: JobKey,
    request: InitRequest,
    keyring: Keyring,
    known: bytes | None,
) -> HelperVerified:
    """Verify the reports on all cores; "Input Share Decryption", "Input Share Validation"."""
    if known is None:  # E3: leave out what the replay index would reject as it is now
        replayed = context.datastore.replay.peek(task.task_pk, request.rows.ids)
        known = replayed.translate(_REPLAYED_WHERE_KNOWN)
    return request.rows.verify(
        task.parameters,
        context.rules(task),
        keyring,
        context.sealer,
        key.id,
        request.batch_id,
        known,
    )
