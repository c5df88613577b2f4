"""The upload loop: open and store, as one group, all requests that arrived during the last commit.

Section "Upload Request". A thread hop or a commit for each request would cost more than its
cryptography. The next group is opened while the last one waits for the disk. Left out: HTTP
(``dapd.server.reports``) and the transaction (``dapd.commits.uploads``).
"""

from __future__ import annotations

import secrets
from collections.abc import Sequence

import outcome
import structlog
import trio

from dapd.commits.uploads import OpenedUploads, store_uploads
from dapd.errors import Abort
from dapd.reports import open_uploads
from dapd.runtime.context import Context
from dapd.runtime.upload_queue import RETRY_SOON, QueuedUpload

_log = structlog.get_logger()
_Groups = tuple[list[QueuedUpload], OpenedUploads]


async def run(context: Context) -> None:
    """Open and store groups of upload requests until the queue is closed and empty."""
    # Without a buffer: while a group waits here for the last commit, the queue gathers the next.
    send, receive = trio.open_memory_channel[_Groups](0)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(_store_all, context, receive)
        async with send:
            while group := await context.uploads.next_group():
                try:
                    opened = await _open(context, group)
                except Exception as error:  # noqa: BLE001 - the answer to the group's requests
                    _fail(group, error)
                else:
                    await send.send((group, opened))


async def _store_all(context: Context, groups: trio.MemoryReceiveChannel[_Groups]) -> None:
    max_rows = context.config.leader.max_job_size
    async for group, opened in groups:
        try:
            answers = await context.run(store_uploads, opened, max_rows, context.now())
        except Exception as error:  # noqa: BLE001 - the answer to the group's requests
            _fail(group, error)
            continue
        context.metrics.succeeded("upload")
        for request, answer in zip(group, answers, strict=True):
            request.answer(outcome.Value(answer))
        context.chunks.ring()
        context.jobs.ring()


async def _open(context: Context, group: Sequence[QueuedUpload]) -> OpenedUploads:
    """Parse, check, open and seal a group; reload the keyring if it lacks a config id (F1)."""
    at = context.instant()
    rules = {request.task.task_pk: request.task.upload_rules_at(at) for request in group}
    inputs = [
        (request.task.parameters, rules[request.task.task_pk], request.body) for request in group
    ]
    keyring = context.keyrings.keyring
    opened = await context.compute(open_uploads, inputs, keyring, context.sealer)
    if opened.unknown_config_ids:
        fresh = await context.keyrings.for_ids(opened.unknown_config_ids)
        if set(opened.unknown_config_ids) & set(fresh.config_ids):
            opened = await context.compute(open_uploads, inputs, fresh, context.sealer)
    return OpenedUploads(
        secrets.token_bytes(16),
        opened,
        [request.task.task_pk for request in group],
        {request.task.task_id: request.task.task_pk for request in group},
    )


def _fail(group: Sequence[QueuedUpload], error: Exception) -> None:
    """Log a group's failure and answer its requests with 503: nothing was stored."""
    _log.error(
        "upload_group_failed",
        requests=len(group),
        exc_info=error,
        remedy="clients are told to try again; if this repeats, run `dapd datastore check`",
    )
    for request in group:
        refusal = Abort(
            None, "the upload could not be stored; try again", status=503, headers=RETRY_SOON
        )
        request.answer(outcome.Error(refusal))
