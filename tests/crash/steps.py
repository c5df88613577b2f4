"""What the tests of killed daemons do beside loads: single uploads, collections and commands, and
looks at what is stored.
"""

from __future__ import annotations

import os
import time
from collections.abc import Sequence

import pytest
import trio

from dapd.client import Client
from dapd.collector import Collector, Query
from dapd.errors import PeerError
from dapd.messages.common import b64url_encode
from dapd.taskfile import TaskFiles
from tests import forks
from tests.crash import dying
from tests.crash.load import PRECISION, STUBBORN
from tests.processes.daemons import DaemonProcess, run_command, start

MOMENTS = pytest.mark.parametrize("moment", ["before", "after"])
OFTEN = "\n[gc]\ninterval = 0.05\n"
HOUR = 60 * PRECISION
AGE = 600
"""A report's life in seconds, once it has one: those of an hour ago have expired."""


def an_hour_ago() -> int:
    """The start of a time precision."""
    return int(time.time()) // PRECISION * PRECISION - HOUR


async def upload(files: TaskFiles, at: int, *values: int) -> None:
    async with Client(files.client) as client:
        assert not (await client.upload(values, time=at)).rejected


async def collect(files: TaskFiles, at: int) -> tuple[int, object]:
    """The result of one time precision: how many, and their sum."""
    async with (
        Collector(files.collector) as collector,
        collector.collect(Query.interval(at, PRECISION)) as result,
    ):
        return result.report_count, result.value


async def aggregated(leader: DaemonProcess, reports: int) -> None:
    """Wait until this Leader's jobs have accepted so many."""
    times = found = 0
    while found < reports:
        times += 1
        found = sum(line["accepted"] for line in await leader.logged("job_finished", times))


async def send_a_job(
    leader: DaemonProcess, helper: DaemonProcess, files: TaskFiles, at: int
) -> None:
    """Start both, and stop them when five reports are aggregated, and a job of five more was sent
    to a Helper that was away.
    """
    await start(leader, helper)
    async with Client(files.client) as client:
        await client.upload(range(5), time=at)
        await aggregated(leader, 5)
        await stop(helper)
        await client.upload(range(5), time=at)  # with the key that this Client knows
        await leader.logged("job_sent", 2)
    await stop(leader)


async def asked_for_a_share(leader: DaemonProcess, files: TaskFiles, at: int) -> None:
    """Begin a collection, and wait until its request has met a Helper that is away."""
    async with trio.open_nursery() as nursery:
        nursery.start_soon(collect, files, at)
        times = 1
        while (await leader.logged("exchange_failed", times))[-1]["kind"] != "collection":
            times += 1
        nursery.cancel_scope.cancel()


async def refused(files: TaskFiles, at: int, error: str) -> None:
    """The Collector is told this, however long it takes."""
    async with Collector(files.collector, patience=STUBBORN) as collector:
        with pytest.raises(PeerError, match=error):
            async with collector.collect(Query.interval(at, PRECISION)):
                pass


async def dies(victim: DaemonProcess, moment: str, functions: Sequence[str]) -> None:
    """Run it once for each function, until it dies there."""
    for name in functions:
        await victim.start(dying.__file__, moment, name)
        with trio.move_on_after(60) as limit:
            await victim.ended()
        assert not limit.cancelled_caught, f"{name} changes nothing"
        assert victim.process is not None
        assert victim.process.returncode == -9, victim.lines[-5:]


async def dying_command(daemon: DaemonProcess, moment: str, name: str, *words: object) -> None:
    """A command that dies at its transaction."""
    command = (dying.__file__, moment, name, "--config", daemon.config, *words)
    status, _, said = await forks.run(*command)
    assert status == -9, said


async def typed(daemon: DaemonProcess, *words: object) -> tuple[int, str]:
    """A command: its exit status and what it says of an error."""
    status, _, stderr = await run_command("--config", daemon.config, *words)
    return status, stderr


async def typed_again(daemon: DaemonProcess, moment: str, told: str, *words: object) -> None:
    """A command that was killed: now it is done, or one is told that it was."""
    status, said = await typed(daemon, *words)
    if moment == "before":
        assert (status, said) == (0, "")
    else:
        assert status != 0
        assert told in said


async def expires(daemon: DaemonProcess, files: TaskFiles) -> None:
    """From now on reports expire; whatever is stored is old."""
    task_id = b64url_encode(files.client.task_id)
    words = ("task", "set", "--report-expiry-age", AGE, "--", task_id)
    assert await typed(daemon, *words) == (0, "")
    daemon.change("UPDATE collection_jobs SET created_at = 1")
    daemon.change("UPDATE aggregate_share_jobs SET created_at = 1")


def left(daemon: DaemonProcess) -> dict[str, int]:
    """How many rows there are of what grows with reports, where there are any."""
    tables = (
        "report_chunks", "chunk_rows", "aggregation_jobs", "job_bodies", "batch_shares",
        "collected", "outstanding_batches", "suspect_batches", "collection_jobs",
        "aggregate_share_jobs",
    )  # fmt: skip
    counts = {table: daemon.read(f"SELECT count(*) FROM {table}")[0][0] for table in tables}  # noqa: S608
    return {table: count for table, count in counts.items() if count}


def counters(daemon: DaemonProcess) -> dict[str, int]:
    return dict(daemon.read("SELECT name, sum(value) FROM task_counters GROUP BY name"))


def use_new_sealing_key(daemon: DaemonProcess) -> None:
    """As its first one."""
    old = "keys/sealing-1.key"
    new = daemon.directory / "keys" / "sealing-2.key"
    new.touch(mode=0o600)
    new.write_text(b64url_encode(os.urandom(32)))
    text = daemon.config.read_text()
    daemon.config.write_text(text.replace(f'["{old}"]', f'["keys/{new.name}", "{old}"]'))


async def stop(*daemons: DaemonProcess) -> None:
    for daemon in daemons:
        assert await daemon.stop() == 0
        assert daemon.findings() == []
