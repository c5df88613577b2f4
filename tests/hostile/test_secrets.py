"""What the daemons say, on every way that they have of saying something, holds no secret (I9)."""

from __future__ import annotations

from pathlib import Path

import trio

from tests.crash.load import open_house
from tests.hostile.search import found
from tests.hostile.whole_run import PROGRAM, WholeRun
from tests.processes.daemons import SECONDS, DaemonProcess, run_command

FAULTS = {"upload_group_failed", "request_failed", "step_failed"}
TROUBLE = {"exchange_failed", "job_waits"}
UPKEEP = {"task_loaded", "job_verified", "hpke_key_made", "reseal_finished", "admin_changed"}


async def speak_to_people(daemon: DaemonProcess) -> None:
    """From now on its lines are of the form that terminals get."""
    text = daemon.config.read_text()
    daemon.config.write_text(text.replace('format = "json"', 'format = "human"'))
    status, *printed = await run_command("--config", daemon.config, "reload")
    assert status == 0, printed


async def test_i9_f3_nothing_secret_is_said_or_stored_in_the_clear(tmp_path: Path) -> None:
    """Keys, tokens, shares, measurements, what is in a report and who sent it: none is in a log of
    either form at level debug, a metric, a problem document, the admin interface, or what commands
    print; and no key, token or share is in a file. While all is well, while peers and Clients
    misbehave, and while parts of the daemon fail with secrets in hand.
    """
    with trio.fail_after(SECONDS):
        async with open_house(tmp_path) as house:
            run = WholeRun(house)
            run.new_tasks()
            for daemon in house.daemons:
                assert await daemon.start(*PROGRAM)
            await run.round()
            async with trio.open_nursery() as nursery:
                for daemon in house.daemons:
                    nursery.start_soon(run.look_after, daemon)
            for daemon in house.daemons:
                await speak_to_people(daemon)
            await run.round()
            for daemon in house.daemons:
                assert await daemon.stop() == 0
            run.finish()
            events = set()
            for daemon in house.daemons:
                name = daemon.directory.name
                records = daemon.records()
                events |= {record["event"] for record in records}
                assert len(records) < len(daemon.lines), "both forms"
                run.said[f"{name}'s log"] = "\n".join(daemon.lines).encode()
            assert events >= FAULTS | TROUBLE | UPKEEP
            public = {"task id": run.tasks[0].client.task_id}
            for where, said in run.said.items():
                assert found(public, said), (where, "can be searched")
                assert found(run.secrets, said) == [], where
            for daemon in house.daemons:
                for file in daemon.database.parent.iterdir():
                    if file.is_file():
                        assert found(run.sealed, file.read_bytes()) == [], file
