"""``{leader}/tasks/{task-id}/collection_jobs``: POST, GET, DELETE for the Collector.

Sections "Collection Job Initialization" and "Collection Job Deletion"; rules A1, A4, A6, A8. A POST
or GET is held for a short while, so that a result that is nearly there is answered at once.
"""

from __future__ import annotations

import secrets

import trio
from quart import Blueprint, Response, request

from dapd.commits.collection_create import collection_create
from dapd.commits.collection_delete import collection_delete
from dapd.datastore import collections
from dapd.datastore.collections import CollectionJob
from dapd.errors import Abort
from dapd.messages.common import MediaType, b64url_encode
from dapd.protocol.task import Task
from dapd.runtime.context import Context
from dapd.server.requests import body_of, done, processing, ready, resource_id, task_of

_JOB_ID_SIZE = 16
_UNSETTLED = frozenset({"waiting", "frozen", "polling"})


def blueprint(context: Context) -> Blueprint:
    """The routes."""
    routes = Blueprint("collection_jobs", __name__)

    @routes.post("/tasks/<task_id>/collection_jobs")
    async def create(task_id: str) -> Response:  # noqa: ARG001 - the front has found the task
        """Make a collection job, or find the one an identical request made."""
        task = task_of(request)
        body = await body_of(request, MediaType.COLLECTION_JOB_REQ)
        job = await context.run(
            collection_create,
            task,
            body,
            secrets.token_bytes(_JOB_ID_SIZE),
            context.instant(),
            int(context.config.collection.leader_selected_keep * 1000),
        )
        context.jobs.ring()
        context.chunks.ring()  # a waiting collection flushes small jobs (C3)
        return await _current(context, task, job, created=True)

    @routes.get("/tasks/<task_id>/collection_jobs/<job_id>")
    async def poll(task_id: str, job_id: str) -> Response:  # noqa: ARG001
        """The result, the problem document of a failed job, or "not ready"."""
        task = task_of(request)
        job = await _find(context, task, resource_id(job_id))
        return await _current(context, task, job, created=False)

    @routes.delete("/tasks/<task_id>/collection_jobs/<job_id>")
    async def delete(task_id: str, job_id: str) -> Response:  # noqa: ARG001
        """The Collector needs the job no more; its batch stays collected (rule A6)."""
        wanted = resource_id(job_id)
        task, at = task_of(request), context.instant()
        if wanted is None or not await context.run(collection_delete, task, wanted, at):
            raise _unknown_job()
        context.finished.announce(("collection", wanted))
        context.chunks.ring()
        return done()

    return routes


async def _current(context: Context, task: Task, job: CollectionJob, *, created: bool) -> Response:
    """The job's state as its answer, alike for POST and GET (rule A4)."""
    job = await _settled(context, task, job)
    location = task.url_path(f"collection_jobs/{b64url_encode(job.id)}")
    match job.state:
        case "finished":
            assert job.response is not None
            if job.served_at is None:
                await context.run(collections.note_served, job.pk, context.now())  # A8
            return ready(job.response, MediaType.COLLECTION_JOB_RESP, location if created else None)
        case "failed":
            raise Abort(job.error, job.detail or "the collection job failed")
        case "deleted":
            raise _unknown_job()
        case _:
            return processing(location, context.config.collection.retry_after)


async def _settled(context: Context, task: Task, job: CollectionJob) -> CollectionJob:
    """The job once it has ended, or as it is when it has been waited for long enough."""
    key = ("collection", job.id)
    ended = context.finished.listen(key)
    try:
        job = await _find(context, task, job.id)  # it may have ended before the listening began
        if job.state in _UNSETTLED and not context.draining.is_set():
            with trio.move_on_after(context.config.collection.poll_hold):
                await ended.wait()
            job = await _find(context, task, job.id)
    finally:
        context.finished.forget(key)
    return job


async def _find(context: Context, task: Task, job_id: bytes | None) -> CollectionJob:
    job = None
    if job_id is not None:
        mark = task.mark_at(context.instant())
        job = await context.read(collections.by_id, task.task_pk, job_id, mark)
    if job is None:
        raise _unknown_job()
    return job


def _unknown_job() -> Abort:
    return Abort(None, "there is no such collection job", status=404)
