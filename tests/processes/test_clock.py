"""``dapd clock``: beside a daemon and without one (rules D6, E5)."""

from __future__ import annotations

import json
import os
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import trio

from dapd.config.loading import load
from dapd.datastore import open_for_command, safe_clock
from tests.processes.daemons import SECONDS, DaemonProcess, Wire, run_command

MONTH = 30 * 86_400


@asynccontextmanager
async def daemon_in(directory: Path) -> AsyncIterator[DaemonProcess]:
    """Its files, with a safe time of a month ago."""
    with trio.fail_after(SECONDS):
        async with trio.open_nursery() as nursery:
            daemon = DaemonProcess(directory, nursery, Wire())
            daemon.make()
            opened = open_for_command(load(daemon.config).datastore.path, holder="a test", now=0)
            month_ago = safe_clock.StoredClock(int(1000 * (time.time() - MONTH)))
            opened.datastore.run_sync(safe_clock.store, month_ago)
            opened.close()
            yield daemon
            nursery.cancel_scope.cancel()


async def clock(daemon: DaemonProcess, *arguments: str) -> str:
    """What the command says, which succeeds."""
    status, stdout, stderr = await run_command("--config", daemon.config, "clock", *arguments)
    assert (status, stderr) == (0, "")
    return stdout


async def held(daemon: DaemonProcess) -> bool:
    return json.loads(await clock(daemon, "show", "--json"))["held"] is not None


async def test_a_stop_of_a_month_is_confirmed_through_the_running_daemon(tmp_path: Path) -> None:
    """The output says first what to do; the word holds at once, and after the next start."""
    async with daemon_in(tmp_path) as daemon:
        assert await daemon.start()
        (alarm,) = await daemon.logged("clock_held")
        shown = await clock(daemon, "show")
        assert shown.splitlines()[0] == f"The clock is held: {alarm['reason']}."
        assert "clock accept" in shown.splitlines()[2]
        assert (await clock(daemon, "accept")).startswith("Accepted: ")
        assert (await clock(daemon, "show")).startswith("dapd follows this machine's clock")
        assert await daemon.stop() == 0
        (change,) = await daemon.logged("admin_changed")
        assert (change["operation"], change["uid"]) == ("clock_accept", os.getuid())
        assert not await held(daemon)


async def test_a_stop_of_a_month_is_confirmed_before_the_start(tmp_path: Path) -> None:
    """Without a daemon the command does it, under the database's lock."""
    async with daemon_in(tmp_path) as daemon:
        assert await held(daemon)
        assert (await clock(daemon, "show")).startswith("The clock is held: the daemon did not run")
        await clock(daemon, "accept")
        assert not await held(daemon)
        assert await daemon.start()
        assert not await held(daemon)
        assert not [line for line in daemon.records() if line["event"] == "clock_held"]
        assert await daemon.stop() == 0


async def test_a_killed_daemons_socket_is_no_daemon(tmp_path: Path) -> None:
    """Neither for a command nor for the next daemon."""
    async with daemon_in(tmp_path) as daemon:
        assert await daemon.start()
        await daemon.kill()
        assert load(daemon.config).admin_socket.is_socket()
        assert await held(daemon)
        assert await daemon.start()
        assert await held(daemon)
        assert await daemon.stop() == 0
        assert not load(daemon.config).admin_socket.exists()


async def test_a_daemon_that_does_not_answer_is_named(tmp_path: Path) -> None:
    """It holds the database, but starts or stops just now, or listens elsewhere."""
    async with daemon_in(tmp_path) as daemon:
        opened = open_for_command(daemon.database, holder="dapd, process 12345", now=0)
        status, _, stderr = await run_command("--config", daemon.config, "clock", "accept")
        opened.close()
        assert status == 1
        assert "dapd, process 12345" in stderr
        assert "try again" in stderr
        assert len(stderr.splitlines()) == 1
