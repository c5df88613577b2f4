"""A database that is replaced by a backup between two runs, after a SIGKILL (D2, C4, ADR 0020).

``tests/paths/test_restore.py`` has what a restored file refuses, on a hand's clock.
"""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest
import trio

from dapd.app import EXIT_CONFIG
from dapd.client import Client
from dapd.collector import Collector, Query
from dapd.messages.common import b64url_encode
from dapd.taskfile import TaskFiles
from tests.crash.load import PRECISION, STUBBORN, Load, open_house
from tests.crash.steps import aggregated, an_hour_ago, collect, refused, typed, upload
from tests.processes.daemons import QUICK, SECONDS, DaemonProcess, run_command, start

SECOND = 1
"""The task's time precision: a quarantine leaves open what comes a moment later."""
Replace = Callable[[DaemonProcess, Path], Awaitable[None]]


async def by_command(daemon: DaemonProcess, backup: Path) -> None:
    assert await typed(daemon, "restore", backup, "--yes") == (0, "")


async def by_hand(daemon: DaemonProcess, backup: Path) -> None:
    for beside in ("-wal", "-shm"):
        daemon.database.with_name(daemon.database.name + beside).unlink()
    shutil.copyfile(backup, daemon.database)


async def upload_when_open(files: TaskFiles, at: int, *values: int) -> None:
    """As soon as the Leader takes reports of that time."""
    async with Client(files.client) as client:
        while (await client.upload(values, time=at)).rejected:
            pass


async def collect_stubbornly(files: TaskFiles, at: int) -> tuple[int, object]:
    async with (
        Collector(files.collector, patience=STUBBORN) as collector,
        collector.collect(Query.interval(at, SECOND)) as result,
    ):
        return result.report_count, result.value


@pytest.mark.parametrize(("side", "replace"), [("leader", by_command), ("helper", by_hand)])
async def test_d2_after_a_kill_and_a_backup_in_its_place_what_is_new_is_exact(
    tmp_path: Path, side: str, replace: Replace
) -> None:
    """What may have been collected since the backup is refused, and what is uploaded later is
    collected to the report.
    """
    with trio.fail_after(SECONDS):
        async with open_house(
            tmp_path, settings=f"{QUICK}\n[reports]\nearly_leeway = 1\n"
        ) as house:
            files = house.new_task("sync", "time-interval", SECOND)
            victim = house.leader if side == "leader" else house.helper
            first, second, third = (an_hour_ago() + i * PRECISION for i in range(3))
            await start(*house.daemons)
            await upload(files, first, 1, 2, 3)
            assert await collect(files, first) == (3, 6)
            await upload(files, second, 10, 20)
            await aggregated(house.leader, 5)
            backups = tmp_path / "backups"
            backups.mkdir()
            assert await typed(victim, "backup", backups) == (0, "")
            await upload(files, second, 30)
            await upload(files, third, 40)
            assert await collect(files, third) == (1, 40)
            await victim.kill()
            [backup] = backups.glob("*.sqlite")
            await replace(victim, backup)
            await start(victim)

            await refused(files, second, "batchInvalid")
            if side == "leader":
                await refused(files, third, "batchInvalid")
            else:
                assert await collect(files, third) == (1, 40)  # A1: the Leader has the result
            command = ("--config", victim.config, "restore", "status", "--json")
            _, said, _ = await run_command(*command)
            [task] = json.loads(said)
            assert task["task_id"] == b64url_encode(files.client.task_id)
            opens = task["reports_dropped_before"]
            await upload_when_open(files, opens, 500, 600)
            assert await collect_stubbornly(files, opens) == (2, 1100)
            for daemon in house.daemons:
                assert await daemon.stop() == 0
                assert daemon.findings() == []


async def test_d2_an_older_copy_beside_the_wal_of_a_killed_daemon_is_refused(
    tmp_path: Path,
) -> None:
    """The start names the command that helps, which does; nothing of the mixture is served."""
    with trio.fail_after(SECONDS):
        async with open_house(tmp_path) as house:
            leader = house.leader
            files = house.new_task("sync", "time-interval")
            await start(*house.daemons)
            assert await leader.stop() == 0
            copy = shutil.copyfile(leader.database, tmp_path / "copy.sqlite")
            await start(leader)
            load = Load(files, random.Random(1), reports=100)
            wal = leader.database.with_name("dapd.sqlite-wal")
            await load.run(lambda: wal.stat().st_size > 4_000_000)  # SQLite has begun it anew
            await Load(files, random.Random(1), earlier=1000).run(lambda: True)
            await leader.kill()
            shutil.copyfile(copy, leader.database)
            assert not await leader.start()
            assert await leader.ended() == EXIT_CONFIG
            assert "run `dapd restore` with the backup" in leader.lines[-1]
            await by_command(leader, copy)
            await start(leader)
            assert await leader.stop() == 0
            assert leader.findings() == []
