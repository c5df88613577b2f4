"""Serve ``{leader}/tasks/{task-id}/collection_jobs`` to the Collector: POST, GET and DELETE.

Sections "Collection Job Initialization" and "Collection Job Deletion"; rules A1, A4, A6, A8. A POST
or GET is held for a short while, which saves the Collector a poll if the result comes soon.
"""

from __future__ import annotations

import secrets
from functools import partial

from quart import Blueprint, Response, request

from dapd.commits.collections import CollectionRequest, create_collection, delete_collection
from dapd.datastore import collections
from dapd.datastore.collections import CollectionJob
from dapd.driver.hold import hold
from dapd.errors import Abort
from dapd.messages.common import MediaType, b64url_encode
from dapd.protocol.states import UNFINISHED, CollectionState
from dapd.protocol.task import Task
from dapd.runtime.context import Context
from dapd.server.problems import TITLES
from dapd.server.requests import body_of, done, processing, ready, resource_id, task_of

_JOB_ID_SIZE = 16


def blueprint(context: Context) -> Blueprint:
    """Return the routes that create, poll and delete collection jobs."""
    routes = Blueprint("collection_jobs", __name__)

    @routes.post("/tasks/<task_id>/collection_jobs")
    async def create(task_id: str) -> Response:  # noqa: ARG001 - the front has found the task
        """Create a job, or return the state of the one that an identical request created."""
        task = task_of(request)
        body = await body_of(request, MediaType.COLLECTION_JOB_REQ)
        job = await context.run(
            create_collection,
            CollectionRequest(task, secrets.token_bytes(_JOB_ID_SIZE), body),
            context.sealer,
            context.instant(),
            int(context.config.collection.leader_selected_keep * 1000),
        )
        context.jobs.ring()
        context.chunks.ring()  # a waiting collection needs its reports in jobs, however small (C3)
        return await _current(context, task, job, created=True)

    @routes.get("/tasks/<task_id>/collection_jobs/<job_id>")
    async def poll(task_id: str, job_id: str) -> Response:  # noqa: ARG001
        """Return the result, the problem document of a failed job, or "not ready"."""
        task = task_of(request)
        job = await _find(context, task, resource_id(job_id))
        return await _current(context, task, job, created=False)

    @routes.delete("/tasks/<task_id>/collection_jobs/<job_id>")
    async def delete(task_id: str, job_id: str) -> Response:  # noqa: ARG001
        """Delete the job; its batch stays collected (rule A6)."""
        wanted = resource_id(job_id)
        task, at = task_of(request), context.instant()
        if wanted is None or not await context.run(delete_collection, task, wanted, at):
            raise _unknown_job()
        context.job_ended(("collection", wanted))
        context.chunks.ring()
        return done()

    return routes


async def _current(context: Context, task: Task, job: CollectionJob, *, created: bool) -> Response:
    """Hold the request, then answer with the job's state, alike for POST and GET (rule A4)."""
    job = await hold(
        context,
        ("collection", job.id),
        partial(_find, context, task, job.id),
        lambda job: job.state not in UNFINISHED,
        context.config.collection.poll_hold,
    )
    location = task.url_path(f"collection_jobs/{b64url_encode(job.id)}")
    match job.state:
        case CollectionState.FINISHED:
            assert job.response is not None
            if job.served_at is None:
                await context.run(collections.note_served, job.pk, context.now())  # A8
            return ready(job.response, MediaType.COLLECTION_JOB_RESP, location if created else None)
        case CollectionState.FAILED:
            # A Helper may refuse with an error of its own, which is none of the draft's (A10).
            error = job.error if job.error in TITLES else None
            raise Abort(error, job.detail or "the collection job failed")
        case CollectionState.DELETED:
            raise _unknown_job()
        case CollectionState.WAITING | CollectionState.FROZEN | CollectionState.POLLING:
            return processing(location, context.config.collection.retry_after)


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
