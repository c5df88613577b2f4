"""SIGKILL around each COMMIT of what keeps a daemon going for years, and of what operators do: D1.

Keys follow each other, values are sealed anew, contributions are merged, what has expired goes, a
restored file is quarantined, a refusal is final, an operator gives up or deletes: whatever dies in
between, afterwards all is as if nothing had.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Sequence
from contextlib import AsyncExitStack
from pathlib import Path

import pytest
import trio

from dapd.client import Client, UploadFailed
from dapd.collector import Collector, Query
from dapd.errors import PeerError
from dapd.gc.compact import MANY
from dapd.http import DapHttp, Patience, Ready, Refused, Unknown
from dapd.messages.common import MediaType, b64url_encode
from dapd.taskfile import TaskFiles
from tests.crash import dying
from tests.crash.load import PRECISION, STUBBORN, open_house
from tests.processes.daemons import QUICK, DaemonProcess, assert_calm, run_command

UPKEEP = ("commits.key_moves.rotate", "commits.reseal.replace", "commits.reseal.finish")
LEADERS_GARBAGE = (
    "gc.loop.raise_marks",
    "gc.pace.expire_collections",
    "gc.pace.drop_chunks",
    "gc.pace.drop_jobs",
    "gc.pace.drop_collections",
    "gc.pace.drop_contributions",
    "gc.pace.drop_ranges",
    "gc.pace._drop_batches",
)
HELPERS_GARBAGE = (
    "gc.loop.raise_marks",
    "gc.pace.drop_jobs",
    "gc.pace.drop_shares",
    "gc.pace.drop_contributions",
    "gc.pace.drop_ranges",
    "gc.pace._drop_batches",
)
"""Each in the order of a sweep."""
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
    command = [sys.executable, dying.__file__, moment, name, "--config", daemon.config, *words]
    done = await trio.run_process([str(word) for word in command], check=False)
    assert done.returncode == -9


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
        "collected", "outstanding_batches", "collection_jobs", "aggregate_share_jobs",
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


async def start(*daemons: DaemonProcess) -> None:
    for daemon in daemons:
        assert await daemon.start(), daemon.lines


async def stop(*daemons: DaemonProcess) -> None:
    for daemon in daemons:
        assert await daemon.stop() == 0
        assert daemon.findings() == []


@MOMENTS
async def test_d1_keys_values_and_sums_outlive_a_kill(tmp_path: Path, moment: str) -> None:
    """F1, F2: one key follows the other, all is sealed with the new key, and the sum is the sum."""
    one_job_each = QUICK.replace("max_job_size = 20", "max_job_size = 5")
    with trio.fail_after(120):
        async with open_house(tmp_path, settings=one_job_each) as house:
            files, at = house.new_task("sync", "time-interval"), an_hour_ago()
            await start(*house.daemons)
            values = range(5 * (MANY + 6))
            await upload(files, at, *values)
            await aggregated(house.leader, len(values))
            await stop(*house.daemons)
            for daemon in house.daemons:
                old_keys = daemon.read("SELECT key_id FROM sealing_keys")
                daemon.change("UPDATE hpke_keypairs SET changed_at = 1")
                use_new_sealing_key(daemon)
                await dies(daemon, moment, UPKEEP)
                await start(daemon)
                if moment == "before":
                    await daemon.logged("reseal_finished")
                await stop(daemon)
                states = daemon.read("SELECT state FROM hpke_keypairs ORDER BY state")
                assert states == [("active",), ("pending",)]
                (new_key,) = daemon.read("SELECT key_id FROM sealing_keys")
                assert new_key not in old_keys
                with daemon.config.open("a") as file:
                    file.write(OFTEN)
                await dies(daemon, moment, ["commits.compact.compact"])
            await start(*house.daemons)
            assert await collect(files, at) == (len(values), sum(values))
            await stop(*house.daemons)
            assert_calm(house.daemons)


@MOMENTS
async def test_d6_what_expires_is_counted_once_whenever_a_daemon_is_killed(
    tmp_path: Path, moment: str
) -> None:
    """Reports in no job, in a job that was sent, in a batch whose share was asked for, and in those
    that were collected or may still be: all go, each counted for what became of it.
    """
    with trio.fail_after(120):
        async with open_house(tmp_path) as house, AsyncExitStack() as stack:
            leader, helper = house.daemons
            files, at = house.new_task("sync", "time-interval"), an_hour_ago()
            selected = house.new_task("sync", "leader-selected")
            await start(leader, helper)
            client = await stack.enter_async_context(Client(files.client, patience=Patience(1)))
            await client.upload(range(5), time=at)
            assert await collect(files, at) == (5, 10)
            await client.upload(range(5), time=at + PRECISION)
            await upload(selected, at, *range(5))
            await aggregated(leader, 15)
            await stop(helper)
            await asked_for_a_share(leader, files, at + PRECISION)
            await client.upload(range(5), time=at + 2 * PRECISION)
            await leader.logged("job_sent", 4)
            await stop(leader)
            await leader.start(dying.__file__, "after", "commits.upload_group.store")
            with pytest.raises(UploadFailed):
                await client.upload(range(5), time=at + 3 * PRECISION)
            assert await leader.ended() == -9

            for each in (files, selected):
                for daemon in house.daemons:
                    await expires(daemon, each)
            await dies(leader, moment, ["commits.leader_start.count_send"])
            for daemon, deaths in ((leader, LEADERS_GARBAGE), (helper, HELPERS_GARBAGE)):
                with daemon.config.open("a") as file:
                    file.write(OFTEN)
                await dies(daemon, moment, deaths)
                so_far = sum(line["event"] == "garbage_collected" for line in daemon.records())
                await start(daemon)
                if moment == "before":
                    await daemon.logged("garbage_collected", so_far + 1)
                await stop(daemon)
            assert left(leader) == {"collection_jobs": 1}, "its Collector is still to be told"
            assert left(helper) == {}
            assert counters(leader) == {
                "upload_accepted": 25,
                "aggregate_finished": 15,
                "aggregate_lost": 5,
                "aggregate_report_dropped": 5,
                "collection_expired": 1,
            }
            assert counters(helper) == {"aggregate_finished": 15}


@MOMENTS
@pytest.mark.parametrize("ended_by", ["commits.expire.expire_job", "gc.pace.expire_jobs"])
async def test_d6_a_job_that_was_sent_is_lost_once_whoever_ends_it(
    tmp_path: Path, moment: str, ended_by: str
) -> None:
    """One that is polled ends with its next step; one of a disabled task, which has none, by the
    garbage collector.
    """
    by_its_step = ended_by.startswith("commits")
    with trio.fail_after(120):
        async with open_house(tmp_path) as house, AsyncExitStack() as stack:
            leader, helper = house.daemons
            files, at = house.new_task("sync", "time-interval"), an_hour_ago()
            await start(leader, helper)
            client = await stack.enter_async_context(Client(files.client))
            await client.upload(range(5), time=at)
            await aggregated(leader, 5)
            await stop(helper)
            await client.upload(range(5), time=at)
            await leader.logged("job_sent", 2)
            await stop(leader)
            await expires(leader, files)
            if by_its_step:
                leader.change(
                    "UPDATE aggregation_jobs SET state = 'polling', location = 'http://[::1]:1/' "
                    "WHERE state = 'stored'"
                )
            else:
                task_id = b64url_encode(files.client.task_id)
                assert await typed(leader, "task", "disable", "--", task_id) == (0, "")
                with leader.config.open("a") as file:
                    file.write(OFTEN)
            await dies(leader, moment, [ended_by])
            await start(leader)
            if moment == "before":
                await leader.logged("job_expired" if by_its_step else "jobs_expired")
            await stop(leader)
            assert counters(leader) == {
                "upload_accepted": 10,
                "aggregate_finished": 5,
                "aggregate_lost": 5,
            }


@MOMENTS
async def test_d1_a_restored_file_is_quarantined_refused_and_reopened_whoever_dies(
    tmp_path: Path, moment: str
) -> None:
    """The Helper's file is put back; the Leader's collection fails once, its batch opens again; and
    what the Helper's operator has accepted is collected, exactly.
    """
    with trio.fail_after(120):
        async with open_house(tmp_path) as house:
            leader, helper = house.daemons
            files, at = house.new_task("sync", "time-interval"), an_hour_ago()
            await start(leader, helper)
            await upload(files, at, 1, 2, 3, 4, 5)
            await aggregated(leader, 5)
            await stop(helper)
            older = helper.database.read_bytes()
            await start(helper)
            await upload(files, at + PRECISION, 6, 7, 8, 9, 10)
            await aggregated(leader, 10)
            await stop(leader, helper)
            helper.database.write_bytes(older)
            await dies(helper, moment, ["commits.quarantine.quarantine"])
            await start(helper)
            await helper.logged("restored_database")

            async with trio.open_nursery() as nursery:
                nursery.start_soon(refused, files, at, "batchInvalid")
                await dies(leader, moment, ["commits.collection_finish.collection_refused"])
                await start(leader)
            task = f"--task={b64url_encode(files.client.task_id)}"
            accept = ("restore", "accept", task, "--from", at, "--until", at + PRECISION)
            await stop(helper)
            await helper.start(dying.__file__, moment, "server.admin.restore.accept")
            status, _ = await typed(helper, *accept)
            assert status == 1
            assert await helper.ended() == -9
            await start(helper)
            await typed_again(helper, moment, "nothing of that is quarantined", *accept)
            assert await collect(files, at) == (5, 15)
            await refused(files, at + PRECISION, "batchInvalid")
            await stop(leader, helper)


@MOMENTS
async def test_d1_what_an_operator_does_is_done_once_whatever_dies(
    tmp_path: Path, moment: str
) -> None:
    """A job is given up, then its task is deleted and purged; each again after the kill."""
    with trio.fail_after(120):
        async with open_house(tmp_path, settings=QUICK + OFTEN) as house, AsyncExitStack() as stack:
            leader, helper = house.daemons
            files, at = house.new_task("sync", "time-interval"), an_hour_ago()
            await start(leader, helper)
            client = await stack.enter_async_context(Client(files.client))
            await client.upload(range(5), time=at)
            await aggregated(leader, 5)
            await stop(helper)
            await client.upload(range(5), time=at)
            await leader.logged("job_sent", 2)
            await stop(leader)
            await leader.start(dying.__file__, moment, "server.admin.jobs._abandon")
            abandon = ("jobs", "abandon", "a2", "--confirm", "a2")
            assert (await typed(leader, *abandon))[0] == 1
            assert await leader.ended() == -9
            await start(leader)
            await typed_again(leader, moment, "has ended: lost", *abandon)
            await stop(leader)
            expected = {"upload_accepted": 10, "aggregate_finished": 5, "aggregate_lost": 5}
            assert counters(leader) == expected

            task_id = b64url_encode(files.client.task_id)
            delete = ("task", "delete", "--discard", "--", task_id)
            await dying_command(leader, moment, "commits.delete_task.delete_task", *delete)
            await typed_again(leader, moment, f"task {task_id} is deleted", *delete)
            await dies(leader, moment, ["gc.loop._purge"])
            await start(leader)
            if moment == "before":
                await leader.logged("task_purged")
            await stop(leader)
            assert leader.read("SELECT state FROM tasks") == [("purged",)]
            assert (left(leader), counters(leader)) == ({}, expected)


@MOMENTS
async def test_a6_a_deleted_aggregate_share_stays_deleted_and_its_batch_collected(
    tmp_path: Path, moment: str
) -> None:
    """A Leader that heard nothing deletes it again; nobody gets the share a second time."""
    with trio.fail_after(120):
        async with open_house(tmp_path) as house, DapHttp() as http:
            leader, helper = house.daemons
            files, at = house.new_task("sync", "time-interval"), an_hour_ago()
            await start(leader, helper)
            await upload(files, at, *range(5))
            assert await collect(files, at) == (5, 10)
            await stop(leader, helper)
            ((share_id,),) = helper.read("SELECT id FROM aggregate_share_jobs")
            path = f"tasks/{b64url_encode(files.client.task_id)}/aggregate_shares"
            url = f"{helper.wire.url}{path}/{b64url_encode(share_id)}"
            token = files.leader.aggregator_auth_token
            await helper.start(dying.__file__, moment, "commits.delete.delete_aggregate_share")
            assert isinstance(await http.delete(url, token), Unknown)
            assert await helper.ended() == -9
            await start(helper)
            again = await http.delete(url, token)
            assert isinstance(again, Ready if moment == "before" else Refused)
            gone = await http.poll(url, token, MediaType.AGGREGATE_SHARE)
            assert isinstance(gone, Refused)
            assert gone.status == 404
            await stop(helper)
            assert helper.read("SELECT state FROM collected") == [("collected",)]
