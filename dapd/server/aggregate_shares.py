"""Serve ``{helper}/tasks/{task-id}/aggregate_shares`` to the Leader: POST, GET and DELETE.

Sections "Obtaining Aggregate Shares" and "Aggregate Share Deletion"; rules A4, A6.
"""

from __future__ import annotations

from quart import Blueprint, Response, request

from dapd.commits.aggregate_share import delete_aggregate_share
from dapd.datastore.share_jobs import StoredShare
from dapd.driver import shares
from dapd.errors import Abort
from dapd.messages.common import MediaType, b64url_encode
from dapd.protocol.task import Task
from dapd.runtime.context import Context
from dapd.server.requests import body_of, done, ready, resource_id, task_of


def blueprint(context: Context) -> Blueprint:
    """Return the routes that create, return and delete aggregate shares."""
    routes = Blueprint("aggregate_shares", __name__)

    @routes.post("/tasks/<_task>/aggregate_shares")
    async def create(_task: str) -> Response:
        """Collect a batch and return its share, or repeat the answer to an identical request."""
        task = task_of(request)
        body = await body_of(request, MediaType.AGGREGATE_SHARE_REQ)
        return _share(task, await shares.create(context, task, body))

    @routes.get("/tasks/<_task>/aggregate_shares/<share>")
    async def state(_task: str, share: str) -> Response:
        """Return the share as it was first served; a ``step`` has no meaning here (rule A4)."""
        task = task_of(request)
        found = await shares.find(context, task, resource_id(share))
        if found is None:
            raise _unknown()
        return _share(task, found)

    @routes.delete("/tasks/<_task>/aggregate_shares/<share>")
    async def forget(_task: str, share: str) -> Response:
        """Delete the share; its batch stays collected (rule A6)."""
        task, share_id = task_of(request), resource_id(share)
        if share_id is None or not await context.run(
            delete_aggregate_share, task.task_pk, share_id
        ):
            raise _unknown()
        return done()

    return routes


def _share(task: Task, share: StoredShare) -> Response:
    location = task.url_path(f"aggregate_shares/{b64url_encode(share.id)}")
    return ready(share.response, MediaType.AGGREGATE_SHARE, location)


def _unknown() -> Abort:
    return Abort(
        None, "there is no aggregate share with this ID; it may have been deleted", status=404
    )
