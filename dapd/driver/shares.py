"""A Helper's aggregate shares: create one, or find the one that an identical request created.

Section "Obtaining Aggregate Shares"; rules A1, A2, A4. Once a request is read, its batch is
collected and its response stored, even if the connection breaks. Left out: HTTP
(``dapd.server.aggregate_shares``) and the transaction (``dapd.commits.aggregate_share``).
"""

from __future__ import annotations

import hashlib
import secrets
from functools import partial

import structlog
from structlog.contextvars import bind_contextvars

from dapd.commits.aggregate_share import ShareRequest, serve_aggregate_share
from dapd.datastore import share_jobs
from dapd.datastore.share_jobs import StoredShare
from dapd.errors import Abort, DecodeError
from dapd.messages.collection import AggregateShareReq
from dapd.messages.common import b64url_encode
from dapd.protocol.task import Task
from dapd.runtime.context import Context

_log = structlog.get_logger()


async def create(context: Context, task: Task, body: bytes) -> StoredShare:
    """Create the share for this ``AggregateShareReq``, or return the one that an identical request
    created before. Raises ``Abort``.
    """
    digest = hashlib.sha256(body).digest()
    # A1: before admission, and before checks that an earlier request passed but this one may not.
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
        partial(context.run, serve_aggregate_share, new, context.sealer, context.instant()),
    )
    share: StoredShare = await running.wait()
    bind_contextvars(job_id=b64url_encode(share.id))
    _log.info("aggregate_share_made", reports=message.report_count)
    return share


async def find(context: Context, task: Task, share_id: bytes | None) -> StoredShare | None:
    """Return the share as it was first served; ``None`` if it was deleted or has expired."""
    if share_id is None:
        return None
    expired_ms = task.mark_at(context.instant()).ms
    return await context.read(share_jobs.by_id, task.task_pk, share_id, expired_ms)
