"""Serve ``{helper}/tasks/{task-id}/aggregation_jobs`` to the Leader: POST, GET and DELETE.

Section "Verifying and Aggregating Reports": the Helper's side of "Helper Initialization", "Helper
Continuation", and "Aggregation Job Abandonment and Deletion".
"""

from __future__ import annotations

from quart import Blueprint, Response, request

from dapd.commits.helper_jobs import delete_aggregation_job
from dapd.datastore.helper_jobs import StoredJob
from dapd.driver import helper_job
from dapd.messages.common import MediaType, b64url_encode
from dapd.protocol.helper import judge_continue, unknown_job
from dapd.protocol.task import Task
from dapd.runtime.context import Context
from dapd.server.requests import body_of, done, processing, ready, resource_id, task_of


def blueprint(context: Context) -> Blueprint:
    """Return the routes that create, poll, continue and delete aggregation jobs."""
    routes = Blueprint("aggregation_jobs", __name__)

    @routes.post("/tasks/<_task>/aggregation_jobs")
    async def create(_task: str) -> Response:
        """Create a job, or return the state of the one that an identical request created."""
        task = task_of(request)
        body = await body_of(request, MediaType.AGGREGATION_JOB_INIT_REQ)
        return _state(context, task, await helper_job.create(context, task, body))

    @routes.get("/tasks/<_task>/aggregation_jobs/<job>")
    async def state(_task: str, job: str) -> Response:
        """Return the job's state; ``step`` is the one at which the Leader believes it to be."""
        task = task_of(request)
        step = request.args.get("step")
        return _state(context, task, await helper_job.poll(context, task, resource_id(job), step))

    @routes.post("/tasks/<_task>/aggregation_jobs/<job>")
    async def proceed(_task: str, job: str) -> Response:
        """Refuse to continue a job: no VDAF here has a second round (rule A11)."""
        body = await body_of(request, MediaType.AGGREGATION_JOB_CONTINUE_REQ)
        await helper_job.find(context, task_of(request), resource_id(job))
        judge_continue(body)

    @routes.delete("/tasks/<_task>/aggregation_jobs/<job>")
    async def forget(_task: str, job: str) -> Response:
        """Delete the job, but keep the ids that it admitted (rule A6)."""
        task, job_id = task_of(request), resource_id(job)
        if job_id is None or not await context.run(delete_aggregation_job, task.task_pk, job_id):
            raise unknown_job()
        context.job_ended(("aggregation", job_id))
        return done()

    return routes


def _state(context: Context, task: Task, job: StoredJob) -> Response:
    """Return the job's result if it is ready, else where and when to ask again (rule A4)."""
    location = task.url_path(f"aggregation_jobs/{b64url_encode(job.id)}")
    if job.response is None:
        return processing(f"{location}?step=0", helper_job.retry_after(context))
    return ready(job.response, MediaType.AGGREGATION_JOB_RESP, location)
