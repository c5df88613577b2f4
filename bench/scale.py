"""Measure what the daemon's loops cost beside many tasks, jobs and batches with which nothing is
to be done.

    python bench/scale.py

A datastore gets many tasks, or many jobs or batches, directly by SQL. Then one round of a loop runs
on it as in the daemon: the creator's, the dispatcher's, the garbage collector's, the look at the
tasks after a command has changed one, and what an operator sees. For each round the program prints
how long it took, how many transactions occupied the writer for how long in total, and for how long
a single step of any Trio task held the event loop. The best of several rounds counts, since other
programs may share the machine.
"""

from __future__ import annotations

import argparse
import contextlib
import logging
import random
import secrets
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import structlog
import trio

from dapd import config
from dapd.admin.gauges import Gauges
from dapd.admin.operation import Nothing
from dapd.admin.status import show
from dapd.crypto import Sealer, make_sealer
from dapd.datastore import Tx, leader_jobs, open_for_daemon, outstanding, tasks
from dapd.driver.creator import create_due
from dapd.driver.dispatcher import Dispatcher
from dapd.driver.step import Step
from dapd.gc.compact import Compaction
from dapd.gc.loop import GarbageCollector
from dapd.http import DapHttp
from dapd.messages.common import Role
from dapd.protocol.batches import time_bucket
from dapd.protocol.task import Task, TaskSettings
from dapd.runtime.clock import SafeClock, SystemClock
from dapd.runtime.context import Context, Outside, make_context
from dapd.taskfile import TaskDraft, aggregator_task, new_task

Mode = Literal["time-interval", "leader-selected"]
PRECISION = 3600
TARGET = 100
AGE = 28 * 86_400
ROUNDS = 5
SOON_MS = 3_600_000
"""The creator waits so long for more reports, so that no job is due."""

CHUNK = """
INSERT INTO report_chunks (task_pk, seq, bucket, n, time_min, time_max, state, run_at, ids)
VALUES (:task_pk, 1, :bucket, 1, :time, :time, 'waiting', :now, zeroblob(16))"""
SHARE = """
INSERT INTO batch_shares (task_pk, bucket, job_id, n, checksum, time_min, time_max, share)
VALUES (:task_pk, :bucket, randomblob(16), :n, zeroblob(32), :time, :time, zeroblob(45))"""
COLLECTED = """
INSERT INTO collected (task_pk, lo, hi, state) VALUES (:task_pk, :lo, :hi, 'collected')"""
STORED = "UPDATE aggregation_jobs SET state = 'stored'"


@dataclass(eq=False)
class HeldLoop(trio.abc.Instrument):
    """Measures the longest step of a Trio task, in seconds."""

    longest: float = 0.0
    _begun: float = 0.0

    def before_task_step(self, task: trio.lowlevel.Task) -> None:
        del task
        self._begun = time.perf_counter()

    def after_task_step(self, task: trio.lowlevel.Task) -> None:
        del task
        if self._begun:
            self.longest = max(self.longest, time.perf_counter() - self._begun)


@dataclass(frozen=True)
class Cost:
    """What one round took: seconds in all, in the writer, and of the event loop's longest step."""

    seconds: float
    transactions: int
    writer: float
    held: float


async def measured(context: Context, one_round: Callable[[], Awaitable[object]]) -> Cost:
    """Run one round."""
    transactions, writer = transactions_of(context)
    loop = HeldLoop()
    trio.lowlevel.add_instrument(loop)
    await trio.lowlevel.checkpoint()  # the step that has added it isn't measured
    begun = time.perf_counter()
    await one_round()
    seconds = time.perf_counter() - begun
    await trio.lowlevel.checkpoint()  # else the last step isn't measured either
    trio.lowlevel.remove_instrument(loop)
    after, writer_after = transactions_of(context)
    return Cost(seconds, after - transactions, writer_after - writer, loop.longest)


def transactions_of(context: Context) -> tuple[int, float]:
    """Return the number of writing transactions so far, and their seconds."""
    samples = [
        sample
        for family in context.metrics.transaction_seconds.collect()
        for sample in family.samples
    ]
    count = sum(sample.value for sample in samples if sample.name.endswith("_count"))
    total = sum(sample.value for sample in samples if sample.name.endswith("_sum"))
    return int(count), total


async def report(
    name: str, context: Context, one_round: Callable[[], Awaitable[object]], rounds: int = ROUNDS
) -> None:
    """Run the rounds and print the costs of the best one."""
    costs = [await measured(context, one_round) for _ in range(rounds)]
    seconds, held = min(cost.seconds for cost in costs), min(cost.held for cost in costs)
    writer, transactions = min(cost.writer for cost in costs), costs[-1].transactions
    sys.stdout.write(
        f"{name:58} {1000 * seconds:8.1f} ms  writer {1000 * writer:8.1f} ms "
        f"in {transactions:5}  loop held {1000 * held:6.1f} ms\n"
    )
    sys.stdout.flush()


@asynccontextmanager
async def opened(fill: Callable[[Tx, Sealer], None]) -> AsyncIterator[Context]:
    """Open a new database that ``fill`` has filled, with all that the daemon's loops use."""
    sealer = make_sealer([secrets.token_bytes(32)])
    with tempfile.TemporaryDirectory(prefix="dapd-bench-") as directory:
        path = Path(directory) / "dapd.sqlite"
        settings = config.Config(
            datastore=config.Datastore(path=path, sealing_keys=(path,)),
            leader=config.Leader(max_wait=SOON_MS / 1000),
            disk=config.Disk(min_free_bytes=0),
        )
        clock = SystemClock()
        database = open_for_daemon(path, holder="bench", now=clock.now(), on_lost=sys.exit)
        with contextlib.closing(database):
            database.datastore.run_sync(fill, sealer)
            outside = Outside(clock, SafeClock(clock, None, 0), random.random)
            async with DapHttp(timeout=60) as http, trio.open_nursery() as nursery:
                context = make_context(settings, outside, database.datastore, sealer, http, nursery)
                await context.tasks.refresh()
                yield context


def make_tasks(number: int, mode: Mode, peers: int = 1, role: Role = Role.LEADER) -> list[Task]:
    """Make tasks, ``peers`` Helpers in turn; all have one configuration but for the ids."""
    draft = TaskDraft(
        vdaf={"type": "count"},
        leader_aggregator_endpoint="https://leader.example/",
        helper_aggregator_endpoint="https://helper.example/",
        batch_mode=mode,
        time_precision=PRECISION,
        min_batch_size=TARGET,
    )
    files = new_task(draft)
    file = files.leader if role is Role.LEADER else files.helper
    task = aggregator_task(file, TaskSettings(report_expiry_age=AGE))
    return [
        replace(
            task,
            task_id=secrets.token_bytes(32),
            configuration_bytes=replace(
                task.configuration,
                helper_aggregator_endpoint=f"https://helper.example/{each % peers}/",
            ).encode(),
        )
        for each in range(number)
    ]


def now_ms() -> int:
    """Return the milliseconds since the Epoch."""
    return SystemClock().now()


def present() -> int:
    """Return the time of a report that is new."""
    return now_ms() // (1000 * PRECISION)


def add_chunk(tx: Tx, task: Task) -> None:
    """Add a report that waits for others."""
    time_now = present()
    bucket = time_bucket(time_now) if task.by_time else b""
    tx.execute(CHUNK, task_pk=task.task_pk, bucket=bucket, time=time_now, now=now_ms())


def stored(tx: Tx, sealer: Sealer, made: list[Task]) -> list[Task]:
    """Store new tasks, and return them with their keys."""
    return [tasks.insert(tx, task, sealer) for task in made]


async def creator_beside_batches(batches: int) -> None:
    """One task with many full batches that nobody has collected, and a report that waits."""

    def fill(tx: Tx, sealer: Sealer) -> None:
        [task] = stored(tx, sealer, make_tasks(1, "leader-selected"))
        add_chunk(tx, task)
        for _ in range(batches):
            batch_id = secrets.token_bytes(32)
            outstanding.insert(tx, task.task_pk, batch_id)
            tx.execute(SHARE, task_pk=task.task_pk, bucket=batch_id, n=TARGET, time=present())

    async with opened(fill) as context:
        name = f"creator: {batches:,} uncollected batches"
        await create_due(context)
        await report(name, context, lambda: create_due(context))


async def creator_beside_tasks(number: int, mode: Mode) -> None:
    """Many tasks with a report each, for which no job is due yet."""

    def fill(tx: Tx, sealer: Sealer) -> None:
        for task in stored(tx, sealer, make_tasks(number, mode)):
            add_chunk(tx, task)

    async with opened(fill) as context:
        name = f"creator: {number:,} {mode} tasks, no job due"
        await report(name, context, lambda: create_due(context), 3)


async def dispatcher_beside_jobs(number: int, jobs: int, peers: int, blocked: int) -> None:
    """Many tasks with many due jobs, of peers that back off; no other job is due."""

    def fill(tx: Tx, sealer: Sealer) -> None:
        made = stored(tx, sealer, make_tasks(number, "time-interval", peers))
        for each in range(jobs):
            task_pk = made[each % number].task_pk
            job = leader_jobs.NewJob(secrets.token_bytes(16), task_pk, 1, b"", 0, 0)
            leader_jobs.insert(tx, job)
        tx.execute(STORED)

    async def step(_: Context, __: Step) -> None:
        raise AssertionError("no job can start")

    async with opened(fill) as context:
        for each in range(peers):
            peer = context.peers.at(f"https://helper.example/{each}/")
            peer.paused = each < blocked
        dispatcher = Dispatcher(context, {("aggregation", "leader"): step}, 1)

        async def dispatch() -> None:
            async with trio.open_nursery() as nursery:
                await dispatcher.dispatch(nursery)

        name = f"dispatcher: {number:,} tasks, {jobs:,} jobs of {blocked:,} blocked peers"
        await report(name, context, dispatch)


async def garbage_beside_tasks(number: int, role: Role, mode: Mode) -> None:
    """Many tasks of which nothing has expired."""

    def fill(tx: Tx, sealer: Sealer) -> None:
        for task in stored(tx, sealer, make_tasks(number, mode, role=role)):
            bucket = time_bucket(present()) if task.by_time else secrets.token_bytes(32)
            tx.execute(SHARE, task_pk=task.task_pk, bucket=bucket, n=TARGET, time=present())
            if task.is_leader:
                add_chunk(tx, task)

    async with opened(fill) as context:
        collector = GarbageCollector(context)
        name = f"{number:,} {mode} tasks as {role.name.capitalize()}"
        await report(f"first round of gc: {name}", context, collector.collect, 1)
        await report(f"round of gc: {name}", context, collector.collect, 3)
        await report(f"merging: {name}", context, Compaction(context).run_round, 3)


async def garbage_beside_batches(batches: int) -> None:
    """One task with many batches of which nothing has expired."""

    def fill(tx: Tx, sealer: Sealer) -> None:
        [task] = stored(tx, sealer, make_tasks(1, "leader-selected"))
        for _ in range(batches):
            batch_id = secrets.token_bytes(32)
            outstanding.insert(tx, task.task_pk, batch_id)
            tx.execute(SHARE, task_pk=task.task_pk, bucket=batch_id, n=TARGET, time=present())

    async with opened(fill) as context:
        collector = GarbageCollector(context)
        await collector.collect()
        await report(f"round of gc: {batches:,} uncollected batches", context, collector.collect, 3)
        name = f"merging: {batches:,} uncollected batches"
        await report(name, context, Compaction(context).run_round, 3)


async def tasks_read_again(number: int) -> None:
    """A command has changed one of many tasks."""

    def fill(tx: Tx, sealer: Sealer) -> None:
        stored(tx, sealer, make_tasks(number, "time-interval"))

    async with opened(fill) as context:
        await report(f"tasks: one of {number:,} has changed", context, context.tasks.reload)


async def watched(number: int) -> None:
    """The metrics and the status of many tasks, each with a report that waits."""

    def fill(tx: Tx, sealer: Sealer) -> None:
        for task in stored(tx, sealer, make_tasks(number, "time-interval")):
            add_chunk(tx, task)

    async with opened(fill) as context:
        await report(f"metrics of {number:,} tasks", context, Gauges(context).refresh, 3)
        await report(f"status of {number:,} tasks", context, lambda: show(context, Nothing()), 3)


async def main(number: int, jobs: int, batches: int, only: str) -> None:
    """Measure all, or those whose name begins with ``only``."""
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.CRITICAL))
    parts: dict[str, Callable[[], Awaitable[None]]] = {
        "creator batches": lambda: creator_beside_batches(batches),
        "creator time-interval": lambda: creator_beside_tasks(number, "time-interval"),
        "creator leader-selected": lambda: creator_beside_tasks(number, "leader-selected"),
        "dispatcher": lambda: dispatcher_beside_jobs(number, 0, 1, 1),
        "dispatcher jobs": lambda: dispatcher_beside_jobs(number, jobs, 1, 1),
        "dispatcher peers": lambda: dispatcher_beside_jobs(number, jobs, 1000, 1000),
        "gc leader": lambda: garbage_beside_tasks(number, Role.LEADER, "time-interval"),
        "gc selected": lambda: garbage_beside_tasks(number, Role.LEADER, "leader-selected"),
        "gc helper": lambda: garbage_beside_tasks(number, Role.HELPER, "time-interval"),
        "gc batches": lambda: garbage_beside_batches(batches),
        "tasks": lambda: tasks_read_again(number),
        "watched": lambda: watched(number),
    }
    for name, part in parts.items():
        if name.startswith(only):
            await part()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.partition("\n\n")[0])
    parser.add_argument("--tasks", type=int, default=10_000)
    parser.add_argument("--jobs", type=int, default=100_000)
    parser.add_argument("--batches", type=int, default=50_000)
    parser.add_argument("--only", default="", help="the beginning of the names to measure")
    given = parser.parse_args()
    trio.run(main, given.tasks, given.jobs, given.batches, given.only)
