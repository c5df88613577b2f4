"""The tasks, live: read again when another process has changed them, and before any refusal.

``dapd task add`` writes into the file of a running daemon (rule E5); a task it added is found at
its first request at the latest.
"""

from __future__ import annotations

from dataclasses import replace

import structlog
import trio

from dapd.crypto import Sealer
from dapd.datastore import Datastore
from dapd.datastore import tasks as table
from dapd.errors import DatastoreError
from dapd.protocol.task import Task

_log = structlog.get_logger()
_LOOK_EVERY = 1.0


class Tasks:
    """Every task in the database, unsealed."""

    def __init__(self, datastore: Datastore, sealer: Sealer) -> None:
        self._datastore = datastore
        self._sealer = sealer
        self._by_id: dict[bytes, Task] = {}
        self._by_pk: dict[int, Task] = {}
        self._lock = trio.Lock()
        self._version: int | None = None

    async def find(self, task_id: bytes) -> Task | None:
        """The task with this id, or ``None`` if the database has none at this moment."""
        if task_id not in self._by_id:
            await self.refresh()
        return self._by_id.get(task_id)

    def by_pk(self, task_pk: int) -> Task:
        """A task that a row refers to."""
        return self._by_pk[task_pk]

    def all(self) -> list[Task]:
        return list(self._by_pk.values())

    def note_peer_accepted(self, task: Task) -> None:
        """Its Helper is known to know the task; the database was told in the same commit (D5)."""
        self._put(replace(task, peer_accepted=True))

    async def refresh(self) -> None:
        """Read the table if another process has committed since it was last read (rule E5)."""
        async with self._lock:
            version = await self._datastore.changes_elsewhere()
            if version != self._version:
                await self._load()
                self._version = version

    async def reload(self) -> None:
        """Read the table now."""
        async with self._lock:
            await self._load()

    async def watch(self, draining: trio.Event) -> None:
        """Read the table whenever another process has committed; looked at once a second."""
        while not draining.is_set():
            try:
                await self.refresh()
            except DatastoreError as error:
                _log.error("tasks_unread", error=str(error))
            with trio.move_on_after(_LOOK_EVERY):
                await draining.wait()

    async def _load(self) -> None:
        for sealed in await self._datastore.read(table.all_tasks):
            known = self._by_id.get(sealed.task_id)
            try:
                task = sealed.unseal(self._sealer)
            except ValueError as error:
                if known is None:
                    _log.error(
                        "task_unreadable",
                        error=str(error),
                        remedy="add its sealing key to the config",
                    )
                continue
            if known != task:
                self._put(task)
                if known is None:
                    _log.info("task_loaded", task_id=task.id_text, role=task.role.name.lower())

    def _put(self, task: Task) -> None:
        self._by_id[task.task_id] = self._by_pk[task.task_pk] = task
