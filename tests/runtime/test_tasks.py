"""The tasks in memory: the daemon sees what another process writes before it refuses a request."""

from __future__ import annotations

import threading
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Concatenate, ParamSpec, cast

import pytest
import structlog.testing
import trio
import trio.testing

from dapd.commits.tasks import add_task, delete_task, rekey_task, set_task_state
from dapd.crypto import Sealer, make_sealer
from dapd.datastore import Datastore, Tx, open_for_command, tasks
from dapd.protocol.task import TaskSettings, TaskState
from dapd.runtime.tasks import Tasks
from tests.clock import NOW
from tests.contexts import open_store
from tests.task_pair import TaskPair, task_pair

P = ParamSpec("P")


@dataclass
class Daemon:
    """One process's view of one task, while commands of another process change the task."""

    store: Datastore
    pair: TaskPair
    live: Tasks

    @property
    def task_id(self) -> bytes:
        return self.pair.leader.task_id

    def command(
        self, fn: Callable[Concatenate[Tx, P], object], *args: P.args, **kwargs: P.kwargs
    ) -> None:
        opened = open_for_command(self.store.path, holder="a command", now=0)
        opened.datastore.run_sync(fn, *args, **kwargs)
        opened.close()

    async def state(self) -> TaskState | None:
        """The task's state as a request finds it."""
        task = await self.live.find(self.task_id)
        return None if task is None else task.state


@pytest.fixture
async def daemon(tmp_path: Path) -> AsyncIterator[Daemon]:
    opened, pair = open_store(tmp_path / "dapd.sqlite"), task_pair()
    opened.datastore.run_sync(add_task, pair.leader, pair.sealer)
    live = Tasks(opened.datastore, pair.sealer)
    await live.refresh()
    yield Daemon(opened.datastore, pair, live)
    opened.close()


async def test_e5_a_task_that_a_command_has_just_added_is_not_refused(tmp_path: Path) -> None:
    """Its first request may come at once, right after one that was refused."""
    opened, pair = open_store(tmp_path / "dapd.sqlite"), task_pair()
    live = Tasks(opened.datastore, pair.sealer)
    assert await live.find(pair.helper.task_id) is None
    command = open_for_command(tmp_path / "dapd.sqlite", holder="a command", now=0)
    command.datastore.run_sync(add_task, pair.helper, pair.sealer)
    command.close()
    found = await live.find(pair.helper.task_id)
    assert found is not None
    assert replace(found, task_pk=0) == pair.helper
    opened.close()


async def test_e5_a_change_by_a_command_is_seen_at_the_next_look(tmp_path: Path) -> None:
    """``dapd task set`` takes effect in a running daemon."""
    opened, pair = open_store(tmp_path / "dapd.sqlite"), task_pair()
    live = Tasks(opened.datastore, pair.sealer)
    opened.datastore.run_sync(add_task, pair.helper, pair.sealer)
    await live.refresh()
    task = await live.find(pair.helper.task_id)
    assert task is not None
    command = open_for_command(tmp_path / "dapd.sqlite", holder="a command", now=0)
    command.datastore.run_sync(tasks.set_settings, task.task_pk, TaskSettings("sync"))
    command.close()
    await live.refresh()
    assert live.by_pk(task.task_pk).settings.helper_mode == "sync"
    opened.close()


class CountingSealer:
    """The real one, which counts what it opens, and remembers in which threads."""

    def __init__(self, sealer: Sealer) -> None:
        self._sealer = sealer
        self.opened: list[int] = []

    def open(self, aad: bytes, sealed: bytes) -> bytes:
        self.opened.append(threading.get_ident())
        return self._sealer.open(aad, sealed)


async def test_a_change_of_one_task_unseals_no_other_one(daemon: Daemon) -> None:
    """Else each command would hold up a daemon of 10,000 tasks; and what is unsealed, the first
    time all of them, is so in a thread that holds up no request.
    """
    more = [task_pair().helper for _ in range(3)]
    for task in more:
        daemon.command(add_task, task, daemon.pair.sealer)
    sealer = CountingSealer(daemon.pair.sealer)
    live = Tasks(daemon.store, cast("Sealer", sealer))
    await live.refresh()
    assert len(live.all()) == 4
    first = len(sealer.opened)
    assert first >= 4
    daemon.command(set_task_state, more[1].task_id, TaskState.DISABLED)
    await live.refresh()
    assert len(live.all()) == 3
    assert len(sealer.opened) == first + 1
    assert threading.get_ident() not in sealer.opened


async def test_e5_a_disabled_task_is_found_by_nobody(
    daemon: Daemon,
) -> None:
    """This holds from the next refresh on; a step under way still finds its task."""
    (task,) = daemon.live.all()
    daemon.command(set_task_state, daemon.task_id, TaskState.DISABLED)
    assert await daemon.state() is TaskState.ACTIVE
    await daemon.live.refresh()
    assert await daemon.state() is None
    assert daemon.live.all() == []
    assert daemon.live.served(task.task_pk) is None
    assert daemon.live.by_pk(task.task_pk).state is TaskState.DISABLED
    daemon.command(set_task_state, daemon.task_id, TaskState.ACTIVE)
    assert await daemon.state() is TaskState.ACTIVE
    assert daemon.live.served(task.task_pk) is not None


async def test_e5_nobody_is_refused_by_a_state_that_is_over(daemon: Daemon) -> None:
    """Before a draining task refuses an upload, its state is read again."""
    daemon.command(set_task_state, daemon.task_id, TaskState.DRAINING)
    await daemon.live.refresh()
    assert await daemon.state() is TaskState.DRAINING
    assert [task.state for task in daemon.live.all()] == [TaskState.DRAINING]
    daemon.command(set_task_state, daemon.task_id, TaskState.ACTIVE)
    assert await daemon.state() is TaskState.ACTIVE


async def test_d6_a_deleted_task_comes_back_under_its_mark(daemon: Daemon) -> None:
    """D6: it is deleted, purged and added again beside a running daemon; a tombstone has no
    secrets.
    """
    with structlog.testing.capture_logs() as logs:
        daemon.command(delete_task, daemon.task_id, NOW, 0.0, discard=False)
        await daemon.live.refresh()
        pk = 1
        assert daemon.live.served(pk) is None
        daemon.command(tasks.purge, pk)
        await daemon.live.refresh()
        assert not daemon.live.unreadable
        assert not daemon.live.all()
        assert daemon.live.by_pk(pk).state is TaskState.PURGED
        again = Tasks(daemon.store, daemon.pair.sealer)
        await again.refresh()
        assert again.all() == []
        daemon.command(add_task, daemon.pair.leader, daemon.pair.sealer)
        found = await daemon.live.find(daemon.task_id)
    assert found is not None
    assert found.expired_before > 0
    assert [line["event"] for line in logs if line["log_level"] == "error"] == []


async def test_f2_an_unreadable_task_is_said_once_and_harms_no_other(daemon: Daemon) -> None:
    """F2: the log line says what to do; when that is done, the task is served."""
    other = make_sealer([bytes(32)])
    live = Tasks(daemon.store, other)
    with structlog.testing.capture_logs() as logs:
        await live.refresh()
        await live.reload()
    assert [line["event"] for line in logs] == ["task_unreadable"]
    assert "dapd task rekey" in logs[0]["remedy"]
    assert not live.all()
    assert set(live.unreadable) == {1}
    daemon.command(rekey_task, daemon.pair.leader, other)
    assert await live.find(daemon.task_id) is not None


async def test_a_task_of_another_version_is_left_alone(daemon: Daemon) -> None:
    """Its rows mean something else; the remedy is another version of dapd."""

    def change(tx: Tx) -> None:
        tx.execute("UPDATE tasks SET dap_version = 'dap-19'")

    daemon.command(change)
    live = Tasks(daemon.store, daemon.pair.sealer)
    with structlog.testing.capture_logs() as logs:
        await live.refresh()
    (line,) = logs
    assert (line["event"], line["remedy"]) == ("task_unreadable", "run a dapd that speaks dap-19")
    assert not live.all()
    assert set(live.unreadable) == {1}


async def test_what_the_helper_accepted_turns_no_change_back(daemon: Daemon) -> None:
    """A step that began before the task was disabled notes only what the Helper accepted."""
    (task,) = daemon.live.all()
    daemon.command(set_task_state, daemon.task_id, TaskState.DISABLED)
    await daemon.live.refresh()
    daemon.live.note_peer_accepted(task)
    known = daemon.live.by_pk(task.task_pk)
    assert (known.state, known.peer_accepted) == (TaskState.DISABLED, True)


class CountedLooks:
    """A database that counts the looks at it, and lets each end when the test says so."""

    def __init__(self, store: Datastore) -> None:
        self._store = store
        self.count = 0
        self.may_end = trio.Event()

    async def data_version(self) -> int:
        self.count += 1
        await self.may_end.wait()
        return await self._store.data_version()

    def __getattr__(self, name: str) -> object:
        return getattr(self._store, name)


async def test_many_that_would_be_refused_share_a_look(daemon: Daemon) -> None:
    """Any request may cause a refresh, so they share one; each is served by one that began after
    the request came.
    """
    looks = CountedLooks(daemon.store)
    live = Tasks(cast("Datastore", looks), daemon.pair.sealer)
    async with trio.open_nursery() as nursery:
        for came in (1, 2):
            for n in range(50):
                nursery.start_soon(live.find, bytes([came, n]) * 16)
            await trio.testing.wait_all_tasks_blocked()
            assert looks.count == 1
        looks.may_end.set()
    assert looks.count == 2
