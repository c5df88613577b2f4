"""The tasks in memory, read again when another process has changed them, and before any refusal.

``dapd task ...`` writes to a running daemon's database (rule E5). The daemon notices within a
second, or before that at the first request that it would refuse otherwise.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection
from dataclasses import replace

import structlog
import trio

from dapd.crypto import Sealer
from dapd.datastore import Datastore, Tx
from dapd.datastore import tasks as table
from dapd.datastore.sqlite import Row
from dapd.datastore.tasks import SealedTask, UnreadableTask
from dapd.protocol.task import Task, TaskState

_log = structlog.get_logger()
_TASKS_A_STEP = 500
"""So many changed tasks are taken over before others get the event loop."""


class Tasks:
    """Every task in the database that this process can unseal.

    ``find``, ``served`` and ``all`` return only those that are served. ``unserved`` has the keys of
    all others that may have jobs, ``unreadable`` of those that this process can't work on.
    """

    def __init__(self, datastore: Datastore, sealer: Sealer) -> None:
        self._datastore = datastore
        self._sealer = sealer
        self._by_id: dict[bytes, Task] = {}
        self._by_pk: dict[int, Task] = {}
        self._rows: dict[int, Row] = {}
        self._unreadable: dict[int, str] = {}
        self.unserved: set[int] = set()
        self._lock = trio.Lock()
        self._refreshes_begun = self._refreshes_done = 0
        self._version: int | None = None

    async def find(self, task_id: bytes) -> Task | None:
        """Return the task with this id; ``None`` if the database has none that is served.

        The database is asked before that, and before a task that refuses something because it is
        draining.
        """
        task = self._by_id.get(task_id)
        if task is None or task.state is not TaskState.ACTIVE:
            await self.refresh()
            task = self._by_id.get(task_id)
        return task if task is not None and task.state.is_served else None

    def by_pk(self, task_pk: int) -> Task:
        """Return the task of a row, whatever its state, as its last steps may still run."""
        return self._by_pk[task_pk]

    @property
    def unreadable(self) -> Collection[int]:
        return self._unreadable.keys()

    def all(self) -> list[Task]:
        """Return the tasks that are served."""
        return [task for task in self._by_pk.values() if task.state.is_served]

    def served(self, task_pk: int) -> Task | None:
        """Return the task of a row if it is served."""
        task = self._by_pk.get(task_pk)
        return task if task is not None and task.state.is_served else None

    def helpers(self) -> Counter[str]:
        """Count the Leader's tasks by their Helper's endpoint."""
        return Counter(
            task.configuration.helper_aggregator_endpoint for task in self.all() if task.is_leader
        )

    def note_peer_accepted(self, task: Task) -> None:
        """Note that the task's Helper has accepted a job, as is already committed (D5)."""
        self._put(replace(self.by_pk(task.task_pk), peer_accepted=True))

    async def refresh(self, version: int | None = None) -> None:
        """Read the table if another process has committed since it was last read (rule E5).

        ``version`` is what ``Datastore.data_version`` has just returned, if the caller has
        asked it. Any request may cause a refresh, so one serves all callers that came before it
        began.
        """
        begun_before = self._refreshes_begun
        async with self._lock:
            if self._refreshes_done > begun_before:
                return
            self._refreshes_begun += 1
            version = version or await self._datastore.data_version()
            if version != self._version:
                await self._load()
                self._version = version
            self._refreshes_done = self._refreshes_begun

    async def reload(self) -> None:
        """Read the table now."""
        async with self._lock:
            await self._load()

    async def _load(self) -> None:
        changed = await self._datastore.read(self._changed)
        for number, (sealed, found) in enumerate(changed, 1):
            known = self._by_pk.get(sealed.task_pk)
            task = self._present(sealed, found, known)
            if task is not None and task != known:
                self._put(task)
                _log_change(task, known)
            may_have_jobs = sealed.state is not TaskState.PURGED
            if may_have_jobs and (task is None or not task.state.is_served):
                self.unserved.add(sealed.task_pk)
            else:
                self.unserved.discard(sealed.task_pk)
            self._rows[sealed.task_pk] = sealed.row
            if not number % _TASKS_A_STEP:
                await trio.lowlevel.checkpoint()

    def _changed(self, tx: Tx) -> list[tuple[SealedTask, Task | UnreadableTask | None]]:
        """Return the tasks whose rows are not those that were last read, each as it is now, or why
        it can't be unsealed. This runs in a reader's thread, as it takes long for many tasks.
        """
        return [
            (sealed, self._unsealed(sealed))
            for sealed in table.each_task(tx)
            if sealed.row != self._rows.get(sealed.task_pk)
        ]

    def _unsealed(self, sealed: SealedTask) -> Task | UnreadableTask | None:
        """Return a task; ``None`` for a tombstone, whose secrets are gone."""
        if sealed.state is TaskState.PURGED:
            return None
        try:
            return sealed.unseal(self._sealer)
        except UnreadableTask as error:
            return error

    def _present(
        self, sealed: SealedTask, found: Task | UnreadableTask | None, known: Task | None
    ) -> Task | None:
        """Return the task as it is now. If it can't be unsealed any more, return what was ``known``
        of it with its present state and marks, by which work under way must end (rule D6).
        """
        if isinstance(found, Task):
            self._unreadable.pop(sealed.task_pk, None)
            return found
        expired_before, quarantined_before = sealed.marks
        known = known and replace(
            known,
            state=sealed.state,
            expired_before=expired_before,
            quarantined_before=quarantined_before,
        )
        if found is None or known is not None:
            return known
        if self._unreadable.get(sealed.task_pk) != str(found):
            self._unreadable[sealed.task_pk] = str(found)
            _log.error(
                "task_unreadable", task_id=sealed.id_text, error=str(found), remedy=found.remedy
            )
        return None

    def _put(self, task: Task) -> None:
        self._by_id[task.task_id] = self._by_pk[task.task_pk] = task


def _log_change(task: Task, known: Task | None) -> None:
    role, state = task.role.name.lower(), task.state.value
    if known is None:
        _log.info("task_loaded", task_id=task.id_text, role=role, state=state)
    elif known.state is not task.state:
        _log.info("task_state_changed", task_id=task.id_text, role=role, state=state)
