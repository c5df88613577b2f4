"""A disk that is nearly full, or full: I1, I2, I4, E4. Its file system is real."""

from __future__ import annotations

import os
import random
from contextlib import AsyncExitStack
from pathlib import Path

import pytest
import trio

from dapd.app import EXIT_TEMPFAIL
from dapd.client import Client, UploadFailed
from dapd.http import Patience
from dapd.taskfile import TaskFiles
from tests.crash.load import PRECISION, Load, assert_counted_once, open_house, until_decided
from tests.crash.steps import an_hour_ago, collect
from tests.faults.small_disk import SmallDisk, small_disk
from tests.processes.daemons import QUICK, SECONDS, DaemonProcess, start

SIZE = 16 << 20
"""Bytes: for a test's database and its WAL, and some room."""
RESERVE = 8 << 20
"""Bytes that a WAL of some 4 MiB and the database of this test don't take within the second between
two looks at the disk."""
FULL = "the disk is full; free some space"
TIMES = 40 if "LONG" in os.environ else 2

pytestmark = pytest.mark.usefixtures("mounts")


async def upload_until_refused(files: TaskFiles, at: int) -> tuple[int, str]:
    """How many uploads of one report with the value 1 were accepted before, and the refusal."""
    accepted = 0
    async with Client(files.client, patience=Patience(attempts=1)) as client:
        while True:
            try:
                accepted += (await client.upload([1], time=at)).accepted
            except UploadFailed as error:
                return accepted, str(error)


async def upload_until_accepted(files: TaskFiles, at: int) -> None:
    """One report with the value 1; without a wait for as long as a refusal asks for."""
    async with Client(files.client, patience=Patience(attempts=1)) as client:
        while True:
            try:
                assert (await client.upload([1], time=at)).accepted == 1
            except UploadFailed:
                continue
            return


async def test_e4_a_nearly_full_disk_refuses_uploads_and_finishes_what_it_has(
    tmp_path: Path,
) -> None:
    """The refusal is a 503; what was accepted before is aggregated and collected in the reserve;
    once there is room, uploads are accepted, without a restart.
    """
    settings = QUICK.replace("min_free_bytes = 0", f"min_free_bytes = {RESERVE}")
    with trio.fail_after(SECONDS):
        async with open_house(tmp_path, settings=settings) as house:
            files = house.new_task("sync", "time-interval")
            at = an_hour_ago()
            async with small_disk(house.leader, SIZE) as disk:
                assert await house.helper.start()
                assert await house.leader.start(*disk.program), house.leader.lines
                async with Client(files.client) as client:
                    assert (await client.upload([1], time=at)).accepted == 1
                disk.fill(leave=RESERVE - 8192)
                more, refusal = await upload_until_refused(files, at)
                assert "HTTP 503: the disk is nearly full" in refusal
                assert await collect(files, at) == (1 + more, 1 + more)
                disk.make_room()
                await upload_until_accepted(files, at - PRECISION)
                assert await collect(files, at - PRECISION) == (1, 1)
                for daemon in house.daemons:
                    assert await daemon.stop() == 0
            assert [daemon.findings() for daemon in house.daemons] == [[], []]


@pytest.mark.parametrize("killed", [False, True], ids=["not killed", "killed"])
async def test_i1_a_full_disk_loses_nothing_and_needs_no_restart(
    tmp_path: Path, killed: bool
) -> None:
    """While another program has all of the disk, uploads are refused with a 503 and jobs repeated;
    once there is room all goes on, and every result is exact. On either side, also if the daemon is
    killed meanwhile, and can't start for as long.
    """
    over = trio.Event()
    with trio.fail_after(SECONDS + TIMES * 20):
        async with open_house(tmp_path) as house:
            loads = [
                Load(house.new_task("async", "time-interval"), random.Random(1), late=5),
                Load(house.new_task("sync", "leader-selected"), random.Random(2)),
            ]
            async with AsyncExitStack() as stack:
                disks = []
                for daemon in house.daemons:
                    disk = await stack.enter_async_context(small_disk(daemon, SIZE))
                    assert await daemon.start(*disk.program), daemon.lines
                    disks.append(disk)
                async with trio.open_nursery() as nursery:
                    for load in loads:
                        nursery.start_soon(load.run, over.is_set)
                    for _ in range(TIMES):
                        for daemon, disk in zip(house.daemons, disks, strict=True):
                            await fill_until_it_fails(daemon, disk, killed=killed)
                    over.set()
                for daemon in house.daemons:
                    assert daemon.process is not None
                    assert daemon.process.returncode is None, daemon.lines[-1]
                    assert await daemon.stop() == 0
            await start(*house.daemons)
            await until_decided(house.leader)
            for daemon in house.daemons:
                assert await daemon.stop() == 0
            assert_counted_once(house, *loads)


async def fill_until_it_fails(daemon: DaemonProcess, disk: SmallDisk, *, killed: bool) -> None:
    """For as long as the WAL has room inside its file, nothing fails."""
    times = sum(FULL in line for line in daemon.lines)
    disk.fill()
    await daemon.wrote(FULL, times + 2)
    starts = True
    if killed:
        await daemon.kill()
        starts = await daemon.start(*disk.program)  # it may need no room
        if not starts:
            assert await daemon.ended() == EXIT_TEMPFAIL
            assert FULL in daemon.lines[-1]
    disk.make_room()
    if not starts:
        assert await daemon.start(*disk.program), daemon.lines[-1]


@pytest.mark.parametrize("known", [True, False], ids=["known", "new"])
async def test_a_daemon_that_starts_on_a_full_disk_says_so(tmp_path: Path, known: bool) -> None:
    """One line, and the status that says that a restart may help; once there is room it does, on a
    database that has everything, or on a new one.
    """
    with trio.fail_after(SECONDS):
        async with open_house(tmp_path) as house:
            leader = house.leader
            if known:
                house.new_task("sync", "time-interval")
            async with small_disk(leader, SIZE) as disk:
                disk.fill()
                assert not await leader.start(*disk.program)
                assert await leader.ended() == EXIT_TEMPFAIL
                [line] = leader.lines
                assert "disk is full" in line or "No space left on device" in line
                disk.make_room()
                assert await leader.start(*disk.program), leader.lines[-1]
                assert await leader.stop() == 0
            assert leader.findings() == []


async def test_a_daemon_that_has_no_room_for_its_socket_starts_once_it_has(tmp_path: Path) -> None:
    """A file system may be out of files, not of bytes; a restart may help then, too."""
    with trio.fail_after(SECONDS):
        async with open_house(tmp_path) as house:
            leader = house.leader
            house.new_task("sync", "time-interval")
            async with small_disk(leader, SIZE, inodes=5) as disk:  # the directory, SQLite's, .lock
                assert not await leader.start(*disk.program)
                assert await leader.ended() == EXIT_TEMPFAIL
                assert "admin: No space left on device; free some space" in leader.lines[-1]
                await disk.remount("nr_inodes=10")
                assert await leader.start(*disk.program), leader.lines[-1]
                assert await leader.stop() == 0
            assert leader.findings() == []
