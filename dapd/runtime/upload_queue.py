"""The queue of upload requests: each waits here until its reports are committed (I2).

Left out: the loop that opens and stores them in groups (``dapd.driver.uploads``).
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field

import outcome
import trio

from dapd.errors import Abort
from dapd.protocol.task import Task
from dapd.reports import UploadAnswer
from dapd.runtime.disk import Disk

RETRY_SOON = {"Retry-After": "1"}


@dataclass(slots=True)
class QueuedUpload:
    """One ``UploadRequest`` in the queue; ``result`` is set before ``done``."""

    task: Task
    body: bytes
    done: trio.Event = field(default_factory=trio.Event)
    result: outcome.Outcome[UploadAnswer] | None = None

    def answer(self, result: outcome.Outcome[UploadAnswer]) -> None:
        """Wake the request's handler with its answer, or with the ``Abort`` that it raises."""
        self.result = result
        self.done.set()


class UploadQueue:
    """Upload requests in the order of their arrival.

    At most ``limit`` requests wait; a group has at most ``max_requests`` and ``max_bytes``.
    """

    def __init__(self, limit: int, max_requests: int, max_bytes: int, disk: Disk) -> None:
        self._limit = limit
        self._max_requests = max_requests
        self._max_bytes = max_bytes
        self._disk = disk
        self._queue: deque[QueuedUpload] = deque()
        self._arrived = trio.Event()
        self._closed = False

    async def submit(self, task: Task, body: bytes) -> UploadAnswer:
        """Store an ``UploadRequest``. Raises ``Abort`` with 503 if that isn't possible now."""
        self._disk.require_space()  # E4
        if self._closed or len(self._queue) >= self._limit:
            raise Abort(None, "too many uploads; try again", status=503, headers=RETRY_SOON)
        request = QueuedUpload(task, body)
        self._queue.append(request)
        self._arrived.set()
        await request.done.wait()
        assert request.result is not None
        return request.result.unwrap()

    @property
    def waiting(self) -> int:
        """How many requests no group has taken yet."""
        return len(self._queue)

    def close(self) -> None:
        """Accept no more requests; ``next_group`` still returns those that are queued (I8)."""
        self._closed = True
        self._arrived.set()

    async def next_group(self) -> list[QueuedUpload]:
        """Wait for requests and return a group; an empty one if the queue is closed and empty."""
        while not self._queue and not self._closed:
            self._arrived = trio.Event()
            await self._arrived.wait()
        group: list[QueuedUpload] = []
        size = 0
        while self._queue and len(group) < self._max_requests:
            size += len(self._queue[0].body)
            if group and size > self._max_bytes:
                break
            group.append(self._queue.popleft())
        return group
