"""A state directory that can't be written: at the start, or from some moment on (E5, I8)."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
import trio

from dapd.app import EXIT_TEMPFAIL
from tests.crash.load import Load, assert_counted_once, open_house
from tests.faults import unprivileged
from tests.faults.small_disk import small_disk
from tests.processes.daemons import SECONDS, DaemonProcess, assert_calm

UNPRIVILEGED = unprivileged.__file__


async def refuses_to_start(daemon: DaemonProcess, *program: str) -> str:
    """The one line that it writes; its exit status says that a restart may help."""
    before = len(daemon.lines)
    assert not await daemon.start(*program)
    assert await daemon.ended() == EXIT_TEMPFAIL
    [line] = daemon.lines[before:]
    assert line.startswith(f"dapd: {daemon.database}")
    return line


@pytest.mark.parametrize("known", [True, False], ids=["known", "new"])
async def test_a_start_in_a_directory_that_this_user_may_not_write(
    tmp_path: Path, known: bool
) -> None:
    """The daemon says which directory, and works once it may."""
    with trio.fail_after(SECONDS):
        async with open_house(tmp_path) as house:
            leader = house.leader
            if known:
                house.new_task("sync", "time-interval")
            leader.database.parent.chmod(0o500)
            said = await refuses_to_start(leader, UNPRIVILEGED)
            assert ("or its directory" if known else "let this user write to it") in said
            leader.database.parent.chmod(0o700)
            assert await leader.start(UNPRIVILEGED), leader.lines[-1]
            assert await leader.stop() == 0


@pytest.mark.usefixtures("mounts")
async def test_a_start_on_a_read_only_file_system(tmp_path: Path) -> None:
    """As after an error of the disk, which makes Linux mount it read-only."""
    with trio.fail_after(SECONDS):
        async with open_house(tmp_path) as house:
            leader = house.leader
            house.new_task("sync", "time-interval")
            async with small_disk(leader, 1 << 23) as disk:
                await disk.remount("ro")
                assert "Read-only file system" in await refuses_to_start(leader, *disk.program)
                await disk.remount("rw")
                assert await leader.start(*disk.program), leader.lines[-1]
                assert await leader.stop() == 0


async def test_a_directory_that_becomes_read_only_does_not_stop_a_daemon(tmp_path: Path) -> None:
    """It has its files open: it accepts, aggregates and stops in order, and all is there later."""
    with trio.fail_after(SECONDS):
        async with open_house(tmp_path) as house:
            load = Load(house.new_task("async", "time-interval"), random.Random(1))
            for daemon in house.daemons:
                assert await daemon.start(UNPRIVILEGED), daemon.lines
                daemon.database.parent.chmod(0o500)
            await load.run(lambda: True)
            for daemon in house.daemons:
                assert await daemon.stop() == 0, daemon.lines[-1]
            assert_calm(house.daemons)
            for daemon in house.daemons:
                daemon.database.parent.chmod(0o700)
            assert_counted_once(house, load)
