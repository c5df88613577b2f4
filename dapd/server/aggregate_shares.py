"""``{helper}/tasks/{task-id}/aggregate_shares``: sections "Obtaining Aggregate Shares" and
"Aggregate Share Deletion".

Served at once, as work of the daemon (rules A2, A4): once a request is read, its batch is collected
and its response stored, whatever becomes of the connection.
"""

from __future__ import annotations

import hashlib
import secrets
from functools import partial

import structlog
from quart import Blueprint, Response, request
from structlog.contextvars import bind_contextvars

from dapd.commits.aggregate_share import ShareRequest, serve
from dapd.commits.delete import delete_aggregate_share
from dapd.datastore import share_jobs
from dapd.datastore.share_jobs import StoredShare
from dapd.errors import Abort, DecodeError
from dapd.messages.collection import AggregateShareReq
from dapd.messages.common import MediaType, b64url_encode
from dapd.protocol.task import Task
from dapd.runtime.context import Context
from dapd.server.requests import body_of, done, ready, resource_id, task_of

_log = structlog.get_logger()


def blueprint(context: Context) -> Blueprint:
    """Creation, representation and deletion of aggregate shares."""
    routes = Blueprint("aggregate_shares", __name__)

    @routes.post("/tasks/<_task>/aggregate_shares")
    async def create(_task: str) -> Response:
        """The share of a batch, which is collected from now on; or that of an identical request."""
        task = task_of(request)
        body = await body_of(request, MediaType.AGGREGATE_SHARE_REQ)
        return _share(task, await _created(context, task, body))

    @routes.get("/tasks/<_task>/aggregate_shares/<share>")
    async def state(_task: str, share: str) -> Response:
        """The share as it was served first; a ``step`` has no meaning here (rule A4)."""
        task, share_id = task_of(request), resource_id(share)
        found = None
        if share_id is not None:
            expired_ms = task.mark_at(context.instant()).ms
            found = await context.read(share_jobs.by_id, task.task_pk, share_id, expired_ms)
        if found is None:
            raise _unknown()
        return _share(task, found)

    @routes.delete("/tasks/<_task>/aggregate_shares/<share>")
    async def forget(_task: str, share: str) -> Response:
        """Forget the share; its batch stays collected (rule A6)."""
        task, share_id = task_of(request), resource_id(share)
        if share_id is None or not await context.run(
            delete_aggregate_share, task.task_pk, share_id
        ):
            raise _unknown()
        return done()

    return routes


async def _created(context: Context, task: Task, body: bytes) -> StoredShare:
    digest = hashlib.sha256(body).digest()
    # A1: before admission, and before the checks, which need not hold any more.
    expired_ms = task.mark_at(context.instant()).ms
    if existing := await context.read(share_jobs.by_identity, task.task_pk, digest, expired_ms):
        return existing
    try:
        message = AggregateShareReq.decode(body)
    except DecodeError as error:
        raise Abort("invalidMessage", f"AggregateShareReq: {error}") from error
    new = ShareRequest(task, secrets.token_bytes(16), digest, message)
    running = context.work.start(
        (task.task_pk, "aggregate_share", digest),
        partial(context.run, serve, new, context.sealer, context.instant()),
    )
    share: StoredShare = await running.wait()
    bind_contextvars(job_id=b64url_encode(share.id))
    _log.info("aggregate_share_made", reports=message.report_count)
    return share


def _share(task: Task, share: StoredShare) -> Response:
    location = task.url_path(f"aggregate_shares/{b64url_encode(share.id)}")
    return ready(share.response, MediaType.AGGREGATE_SHARE, location)


def _unknown() -> Abort:
    return Abort(
        None, "no aggregate share with this ID is here; it may have been deleted", status=404
    )
