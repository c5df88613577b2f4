"""A WAL that grows under a long reader, while two processes are under load (E5)."""

from __future__ import annotations

import random
import sqlite3
from contextlib import closing
from pathlib import Path

import trio

from tests.crash.load import Load, assert_counted_once, open_house
from tests.faults import endless_busy
from tests.processes.daemons import SECONDS, DaemonProcess, assert_calm

LIMIT = endless_busy.WAL_LIMIT_BYTES
REPORTS = 100


def wal_size(daemon: DaemonProcess) -> int:
    return daemon.database.with_name("dapd.sqlite-wal").stat().st_size


async def test_e5_a_long_reader_stops_neither_uploads_nor_jobs_and_leaves_no_wal(
    tmp_path: Path,
) -> None:
    """While another process reads, both daemons go on, though neither ever gives up waiting for a
    lock; soon after it has ended, their WALs are short again.
    """
    with trio.fail_after(SECONDS):
        async with open_house(tmp_path) as house:
            files = house.new_task("async", "time-interval")
            for daemon in house.daemons:
                assert await daemon.start(endless_busy.__file__), daemon.lines
            with (
                closing(sqlite3.connect(house.leader.database)) as leader,
                closing(sqlite3.connect(house.helper.database)) as helper,
            ):
                for reader in (leader, helper):
                    reader.execute("BEGIN")
                    reader.execute("SELECT count(*) FROM tasks").fetchone()
                meanwhile = Load(files, random.Random(1), reports=REPORTS)
                await meanwhile.run(lambda: min(map(wal_size, house.daemons)) > LIMIT + (1 << 19))
            after = Load(files, random.Random(2), reports=REPORTS, earlier=1000)
            await after.run(lambda: max(map(wal_size, house.daemons)) < LIMIT)
            for daemon in house.daemons:
                assert await daemon.stop() == 0
            assert_counted_once(house, meanwhile, after)
            assert_calm(house.daemons)
