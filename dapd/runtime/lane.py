"""The upload lane: whatever has queued while the last commit ran is opened and stored together.

Section "Upload Request". Two stages: the next group is opened while the last one waits for the
disk. A thread hop or a commit per request would cost more than its cryptography. Left out: HTTP
(``dapd.server.reports``) and the transaction (``dapd.commits.upload_group``).
"""

from __future__ import annotations

import secrets
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import outcome
import structlog
import trio

from dapd.commits import upload_group
from dapd.commits.upload_group import Opened
from dapd.errors import Abort
from dapd.protocol.task import Task
from dapd.reports import UploadAnswer, open_uploads
from dapd.runtime.disk import Disk

if TYPE_CHECKING:
    from dapd.runtime.context import Context

_log = structlog.get_logger()
_RETRY_AFTER = {"Retry-After": "1"}


@dataclass(slots=True)
class _Request:
    task: Task
    body: bytes
    done: trio.Event = field(default_factory=trio.Event)
    result: outcome.Outcome[UploadAnswer] | None = None


class Lane:
    """``submit`` waits for the commit that makes its answer true (I2); ``run`` does the work.

    ``queue`` bounds the requests that wait. ``max_requests`` and ``max_bytes`` bound a group.
    """

    def __init__(self, queue: int, max_requests: int, max_bytes: int, disk: Disk) -> None:
        self._limit = queue
        self._max_requests = max_requests
        self._max_bytes = max_bytes
        self._disk = disk
        self._queue: deque[_Request] = deque()
        self._arrived = trio.Event()
        self._closed = False

    async def submit(self, task: Task, body: bytes) -> UploadAnswer:
        """Store an ``UploadRequest``. Raises ``Abort`` with 503 if that can't be done now."""
        self._disk.require_space()  # E4
        if self._closed or len(self._queue) >= self._limit:
            raise Abort(None, "too many uploads; try again", status=503, headers=_RETRY_AFTER)
        request = _Request(task, body)
        self._queue.append(request)
        self._arrived.set()
        await request.done.wait()
        assert request.result is not None
        return request.result.unwrap()

    @property
    def waiting(self) -> int:
        """Requests that no group has taken yet."""
        return len(self._queue)

    def close(self) -> None:
        """Take no more; ``run`` returns once what is queued is stored (I8)."""
        self._closed = True
        self._arrived.set()

    async def run(self, context: Context) -> None:
        """Open and store groups until the lane is closed and empty."""
        # Without a buffer: while a group waits here for the last commit, the next one gathers.
        send, receive = trio.open_memory_channel[tuple[list[_Request], Opened]](0)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._store_all, context, receive)
            async with send:
                while group := await self._next_group():
                    try:
                        opened = await _open(context, group)
                    except Exception as error:  # noqa: BLE001 - its requests' answer
                        _fail(group, error)
                    else:
                        await send.send((group, opened))

    async def _next_group(self) -> list[_Request]:
        """What has queued up, within the caps; empty once the lane is closed and empty."""
        while not self._queue and not self._closed:
            self._arrived = trio.Event()
            await self._arrived.wait()
        group: list[_Request] = []
        size = 0
        while self._queue and len(group) < self._max_requests:
            size += len(self._queue[0].body)
            if group and size > self._max_bytes:
                break
            group.append(self._queue.popleft())
        return group

    async def _store_all(
        self,
        context: Context,
        groups: trio.MemoryReceiveChannel[tuple[list[_Request], Opened]],
    ) -> None:
        max_rows = context.config.leader.max_job_size
        async for group, opened in groups:
            try:
                answers = await context.run(upload_group.store, opened, max_rows, context.now())
            except Exception as error:  # noqa: BLE001 - its requests' answer
                _fail(group, error)
                continue
            context.metrics.succeeded("upload")
            for request, answer in zip(group, answers, strict=True):
                request.result = outcome.Value(answer)
                request.done.set()
            context.chunks.ring()
            context.jobs.ring()


async def _open(context: Context, group: Sequence[_Request]) -> Opened:
    """Parse, check, open and seal a group; an unknown config id reloads the keyring first (F1)."""
    at, leeway = context.instant(), context.config.reports.early_leeway
    rules = {request.task.task_pk: request.task.upload_rules_at(at, leeway) for request in group}
    inputs = [
        (request.task.parameters, rules[request.task.task_pk], request.body) for request in group
    ]
    keyring = context.keyrings.keyring
    opened = await context.compute(open_uploads, inputs, keyring, context.sealer)
    if opened.unknown_config_ids:
        fresh = await context.keyrings.for_ids(opened.unknown_config_ids)
        if set(opened.unknown_config_ids) & set(fresh.config_ids):
            opened = await context.compute(open_uploads, inputs, fresh, context.sealer)
    return Opened(
        secrets.token_bytes(16),
        opened,
        [request.task.task_pk for request in group],
        {request.task.task_id: request.task.task_pk for request in group},
    )


def _fail(group: Sequence[_Request], error: Exception) -> None:
    """The one edge at which a group's failure becomes its requests' answers: nothing was stored."""
    _log.error(
        "upload_group_failed",
        requests=len(group),
        exc_info=error,
        remedy="Clients are told to try again; if it stays, check the database",
    )
    for request in group:
        request.result = outcome.Error(
            Abort(
                None, "the upload could not be stored; try again", status=503, headers=_RETRY_AFTER
            )
        )
        request.done.set()
