"""A database, a configuration and a ``Context``, made as the daemon makes them."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import trio

from dapd import config
from dapd.config.keyfiles import read_sealing_keys
from dapd.crypto import Sealer, make_sealer
from dapd.datastore import Datastore, Tx, batches, keys, open_for_daemon
from dapd.datastore import tasks as task_table
from dapd.datastore.batches import Contribution
from dapd.datastore.opening import Opened
from dapd.http import DapHttp
from dapd.messages.common import b64url_encode
from dapd.protocol.task import Task
from dapd.runtime.clock import Clock, SafeClock
from dapd.runtime.context import Context, Outside, make_context
from tests.clock import NOW, ManualClock
from tests.task_pair import SEALING_KEY, TaskPair


def open_store(path: Path) -> Opened:
    """A datastore as the daemon opens it, created if need be."""
    return open_for_daemon(path, holder="a test", now=NOW, on_lost=_lost)


def add_task(datastore: Datastore, task: Task, pair: TaskPair) -> Task:
    """Store the task, and its Aggregator's key pair; the task with its ``task_pk``."""
    keypair = pair.leader_key if task.is_leader else pair.helper_key
    datastore.run_sync(keys.insert_keypair, keypair, pair.sealer, "active", NOW)
    return datastore.run_sync(task_table.insert, task, pair.sealer)


def make_config(
    directory: Path,
    *,
    helper: config.Helper | None = None,
    leader: config.Leader | None = None,
    disk: config.Disk | None = None,
) -> config.Config:
    """A configuration whose database is in ``directory``, with ``SEALING_KEY`` as its key."""
    key = directory / "sealing.key"
    key.write_text(b64url_encode(SEALING_KEY))
    key.chmod(0o600)
    return config.Config(
        datastore=config.Datastore(path=directory / "dapd.sqlite", sealing_keys=(key,)),
        helper=helper or config.Helper(),
        leader=leader or config.Leader(),
        disk=disk or config.Disk(min_free_bytes=0),
    )


@asynccontextmanager
async def context_around(
    settings: config.Config, datastore: Datastore, sealer: Sealer, clock: Clock
) -> AsyncIterator[Context]:
    """What a daemon's handlers and steps get, but without chance; no server, no loops.

    What is still at work at the end is cancelled, as by a daemon whose grace is over.
    """
    outside = Outside(clock, SafeClock(clock, None, 0), lambda: 0.0)
    async with DapHttp(timeout=60) as http, trio.open_nursery() as nursery:
        context = make_context(settings, outside, datastore, sealer, http, nursery)
        await context.tasks.refresh()
        await context.keyrings.refresh()
        yield context
        nursery.cancel_scope.cancel()


@asynccontextmanager
async def open_context(
    settings: config.Config, *tasks: tuple[Task, TaskPair], clock: Clock | None = None
) -> AsyncIterator[Context]:
    """``context_around`` the database of ``settings``, with ``tasks`` in it.

    Without a ``clock`` time stands still.
    """
    opened = open_store(settings.datastore.path)
    sealer = make_sealer(read_sealing_keys(settings))
    for task, pair in tasks:
        add_task(opened.datastore, task, pair)
    try:
        async with context_around(
            settings, opened.datastore, sealer, clock or ManualClock()
        ) as context:
            yield context
    finally:
        opened.close()


class NativeGate:
    """Keeps every call of the extension waiting for a thread, as a busy machine does."""

    def __init__(self, context: Context) -> None:
        self._threads = context.native_threads
        self._tokens = self._threads.total_tokens
        self._threads.total_tokens = 0

    async def arrived(self) -> None:
        """Wait until a call has come to the gate."""
        while not self._threads.statistics().tasks_waiting:
            await trio.lowlevel.checkpoint()

    def open(self) -> None:
        self._threads.total_tokens = self._tokens


def clock_of(context: Context) -> ManualClock:
    """The clock of a context that was opened without another."""
    assert isinstance(context.clock, ManualClock)
    return context.clock


def contributions(tx: Tx, task_pk: int, lo: bytes, hi: bytes) -> list[Contribution]:
    """What the buckets of [lo, hi) got."""
    pages = batches.contributions_in_pages(tx, task_pk, lo, hi)
    return [part for page in pages for part in page]


def _lost(message: str) -> None:
    raise AssertionError(message)
