"""``dapd status | jobs | peer | log | task counters`` beside a Leader whose Helper goes away."""

from __future__ import annotations

import json
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import trio

from dapd.http import DapHttp
from dapd.messages.common import b64url_encode
from dapd.taskfile import TaskFile, read_task_file
from tests.pair_harness import until
from tests.processes.daemons import SECONDS, DaemonProcess, run_command, start_pair
from tests.processes.test_task_life import make_task, seal, upload

STUBBORN = """
[log]
level = "info"
format = "json"

[disk]
min_free_bytes = 0

[leader]
retry_min = 3000.0
retry_max = 3000.0
max_wait = 0.0
min_job_size = 3
max_job_size = 3
"""
"""Whatever fails waits for longer than a test takes: only a command lets it go on."""


@dataclass
class House:
    """A Leader and a Helper, their task, and a client."""

    leader: DaemonProcess
    helper: DaemonProcess
    task: TaskFile
    http: DapHttp

    async def dapd(self, *arguments: object, status: int = 0, stdin: bytes = b"") -> str:
        """What a command beside the Leader prints, on both streams."""
        code, stdout, stderr = await run_command(
            "--config", self.leader.config, *arguments, stdin=stdin
        )
        assert code == status, stdout + stderr
        return stdout if status == 0 else stdout + stderr

    async def told(self, *arguments: object, status: int = 0) -> Any:
        return json.loads(await self.dapd(*arguments, "--json", status=status))

    async def until_first_waits_for(self, reason: str) -> dict[str, Any]:
        """The oldest unfinished job, once it waits for this."""
        found: list[dict[str, Any]] = []

        async def waits() -> bool:
            found[:] = (await self.told("jobs", "list"))["jobs"]
            return bool(found) and found[0]["waits"]["reason"] == reason

        await until(waits)
        return found[0]

    async def until_counted(self, name: str, value: int) -> None:
        task_id = b64url_encode(self.task.task_id)

        async def counted() -> bool:
            counters = await self.told("task", "counters", task_id)
            return bool(counters.get(name) == value)

        await until(counted)

    def changes(self) -> list[str]:
        """The operations that the Leader's log tells of."""
        records = [each for each in self.leader.records() if each["event"] == "admin_changed"]
        assert {each["uid"] for each in records} <= {os.getuid()}
        return [each["operation"] for each in records]


@asynccontextmanager
async def open_house(directory: Path) -> AsyncIterator[House]:
    """Both daemons run, and have a task."""
    with trio.fail_after(SECONDS):
        async with trio.open_nursery() as nursery, DapHttp() as http:
            daemons = await start_pair(directory, nursery, STUBBORN)
            await make_task(daemons, directory / "task")
            task = read_task_file(directory / "task/client.toml")
            yield House(daemons["leader"], daemons["helper"], task, http)
            nursery.cancel_scope.cancel()


async def test_e1_a_helper_that_was_away_is_probed_and_its_job_goes_on(tmp_path: Path) -> None:
    """Each command names what the job waits for; once the Helper is back, a probe lets
    the job go on that was made due before."""
    async with open_house(tmp_path) as house:
        reports = await seal(house.http, house.task, "while it is away")
        url = house.helper.wire.url
        await house.helper.stop()
        assert await upload(house.http, house.task, reports) == {0}
        job = await house.until_first_waits_for("peer_unreachable")
        assert (job["reports"], job["state"], job["attempts"]) == (3, "stored", 1)
        shown = (await house.dapd("jobs", "show", job["job"])).splitlines()
        assert f"{url} can't be reached" in shown[0]
        assert shown[1] == f"To do: `dapd peer probe {url}` says why."
        assert (await house.told("jobs", "show", job["id"]))["job"]["job"] == job["job"]
        assert "failing for " in await house.dapd("peer", "list")
        probed = await house.told("peer", "probe", url, status=1)
        assert (probed["ok"], probed["status"], probed["peer"]["state"]) == (False, None, "failing")
        retried = await house.told("jobs", "retry", job["job"])
        assert retried["job"]["waits"]["reason"] == "peer_unreachable"
        assert await house.helper.start()
        assert "good, 1 HPKE key in" in await house.dapd("peer", "probe", url)
        await house.until_counted("aggregate_finished", 3)
        assert await house.dapd("jobs", "list") == "There are no unfinished jobs.\n"
        assert "has ended: finished" in await house.dapd("jobs", "retry", job["job"], status=2)
        assert house.changes().count("job_retry") == 1


async def test_d4_an_abandoned_job_is_confirmed_counted_as_lost_and_not_made_again(
    tmp_path: Path,
) -> None:
    """Its reports go into no other job, also once the peer may be asked again."""
    async with open_house(tmp_path) as house:
        url = house.helper.wire.url
        assert "until the daemon stops" in await house.dapd("peer", "pause", url[:-1])
        for label in ("first", "second"):
            reports = await seal(house.http, house.task, label)
            assert await upload(house.http, house.task, reports) == {0}
        job = await house.until_first_waits_for("peer_paused")
        name = job["job"]
        assert job["waits"]["remedy"] == f"`dapd peer resume {url}`"
        status = await house.dapd("status")
        assert status.splitlines()[-2].startswith(f"- {url} is paused")
        await house.dapd("jobs", "abandon", name, "--confirm", "a99", status=2)
        await house.dapd("jobs", "abandon", name, status=2, stdin=b"no\n")
        assert (await house.told("jobs", "show", name))["job"]["state"] == "stored"
        given_up = await house.dapd("jobs", "abandon", name, stdin=f"{name}\n".encode())
        assert "Lost: 3 reports." in given_up
        await house.until_counted("aggregate_lost", 3)
        assert (await house.told("peer", "resume", url))["state"] == "ok"
        await house.until_counted("aggregate_finished", 3)
        page = await house.told("jobs", "list", "--all", "--limit", 1)
        rest = await house.told("jobs", "list", "--all", "--cursor", page["next"])
        states = [each["state"] for each in page["jobs"] + rest["jobs"]]
        assert (states, rest["next"]) == (["finished", "lost"], None)
        lost = await house.told("jobs", "list", "--state", "lost")
        assert [each["job"] for each in lost["jobs"]] == [name]
        assert house.leader.findings() == []
        assert house.changes() == ["peer_pause", "job_abandon", "peer_resume"]


async def test_status_says_what_there_is_to_do_and_when_there_is_nothing(tmp_path: Path) -> None:
    """A backup is made as it says, and then nothing is left to do; without a daemon it exits 3."""
    async with open_house(tmp_path) as house:
        task_id = b64url_encode(house.task.task_id)
        first = (await house.dapd("status")).splitlines()
        assert first[0].startswith("dapd ")
        assert ", leader, process " in first[0]
        assert any(line.startswith(f"tasks     1 active: {task_id[:8]}") for line in first)
        assert first[-2:] == [
            "To do:",
            "- there is no backup yet: `dapd backup DIR` every night, to another disk",
        ]
        (tmp_path / "copies").mkdir()
        await house.dapd("backup", tmp_path / "copies")
        assert (await house.dapd("status")).splitlines()[-1] == "Nothing to do."
        told = await house.told("status")
        assert (told["roles"], told["to_do"]) == (["leader"], [])
        assert [key["state"] for key in told["keys"]] == ["active"]
        helper = json.loads(
            (await run_command("--config", house.helper.config, "status", "--json"))[1]
        )
        assert (helper["roles"], helper["peers"]) == (["helper"], [])
        await house.leader.stop()
        stopped = await house.dapd("status", status=3)
        assert "no daemon runs" in stopped
        assert len(stopped.splitlines()) == 1


async def test_the_log_level_changes_until_the_next_start(tmp_path: Path) -> None:
    """Lines below it are written from then on, and not after a restart."""
    async with open_house(tmp_path) as house:
        assert await house.dapd("log", "level") == "Log level: info.\n"
        assert "After a restart: info" in await house.dapd("log", "level", "debug")
        reports = await seal(house.http, house.task, "a debug line")
        assert await upload(house.http, house.task, reports) == {0}
        await house.until_counted("aggregate_finished", 3)
        assert [each for each in house.leader.records() if each["level"] == "debug"]
        assert "not a log level" in await house.dapd("log", "level", "loud", status=2)
        assert (await house.told("log", "level", "error"))["configured"] == "info"
        await house.leader.stop()
        assert await house.leader.start()
        assert (await house.told("log", "level"))["level"] == "info"
