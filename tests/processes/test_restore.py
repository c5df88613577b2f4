"""``dapd restore`` as an operator types it: beside a daemon, without one, and at each turn."""

from __future__ import annotations

import json
import os
import sqlite3
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, closing
from dataclasses import dataclass
from pathlib import Path

import trio

from dapd.messages.common import b64url_encode
from dapd.taskfile import TaskDraft, new_task, parse_vdaf_spec
from tests.processes.daemons import SECONDS, DaemonProcess, Wire, run_command

HOUR = 3600


@dataclass
class Operator:
    daemon: DaemonProcess
    backup: Path

    async def types(self, *arguments: object, stdin: bytes = b"") -> tuple[int, str, str]:
        config = self.daemon.config
        return await run_command("--config", config, "restore", *arguments, stdin=stdin)

    async def succeeds(self, *arguments: object) -> str:
        status, stdout, stderr = await self.types(*arguments)
        assert (status, stderr) == (0, "")
        return stdout


@asynccontextmanager
async def operator_of(directory: Path) -> AsyncIterator[Operator]:
    """A Helper with one task, a backup of it, and another task that the backup lacks."""
    with trio.fail_after(SECONDS):
        async with trio.open_nursery() as nursery:
            daemon = DaemonProcess(directory, nursery, Wire())
            daemon.make()
            draft = TaskDraft(
                vdaf=parse_vdaf_spec("count"),
                batch_mode="time-interval",
                min_batch_size=10,
                time_precision=HOUR,
                leader_aggregator_endpoint="http://127.0.0.1:1/",
                helper_aggregator_endpoint="http://127.0.0.1:2/",
            )
            daemon.add(new_task(draft).helper)
            assert await daemon.start()
            assert await daemon.stop() == 0
            backup = directory / "backup.sqlite"
            with closing(sqlite3.connect(daemon.database)) as connection:
                connection.execute("VACUUM INTO :to", {"to": os.fspath(backup)})
            daemon.add(new_task(draft).helper)
            yield Operator(daemon, backup)
            nursery.cancel_scope.cancel()


async def test_restore_status_and_accept(tmp_path: Path) -> None:
    """Refused beside a daemon; then the daemon comes up on it, and each word of the way is there:
    accept goes through the running daemon, and without one does it itself.
    """
    async with operator_of(tmp_path) as operator:
        daemon = operator.daemon
        assert await daemon.start()
        status, _, stderr = await operator.types("--yes", operator.backup)
        assert status == 1
        assert "is held by dapd, process" in stderr
        assert "stop it" in stderr
        assert await daemon.stop() == 0

        status, _, _ = await operator.types(operator.backup, stdin=b"n\n")
        assert status == 130
        assert "Nothing is quarantined." in await operator.succeeds("status")
        said = await operator.succeeds(operator.backup, "--yes")
        assert "before-restore-" in said
        assert "restore accept --task ID" in said

        assert await daemon.start()
        assert not any(line["event"] == "restored_database" for line in daemon.records())
        _, said, _ = await run_command("--config", daemon.config, "status")
        assert "a restore has closed batches of 1 task" in said
        [task] = json.loads(await operator.succeeds("status", "--json"))
        assert task["quarantined_intervals"] == [[0, task["reports_dropped_before"]]]
        assert (task["buckets"], task["buckets_are_complete"]) == ([], True)
        name = task["task_id"]
        said = await operator.succeeds("accept", f"--task={name}", "--until", "2020-01-02")
        assert said == "Reopened: 1970-01-01T00:00:00Z until 2020-01-02T00:00:00Z\n"
        assert await daemon.stop() == 0
        until = task["reports_dropped_before"]
        said = await operator.succeeds("accept", f"--task={name}", "--from", until - HOUR)
        assert said.startswith("Reopened: ")
        status, _, stderr = await operator.types("accept", f"--task={name}", "--from", until - HOUR)
        assert (status, stderr.count("\n")) == (2, 1)
        assert "nothing of that is quarantined" in stderr
        said = await operator.succeeds("status", "--task", name)
        assert "closed       2020-01-02T00:00:00Z until " in said


async def test_an_older_file_put_there_by_hand_is_noticed_at_the_start(tmp_path: Path) -> None:
    """The daemon says so once, with what to do, and serves; the next start has nothing to say."""
    async with operator_of(tmp_path) as operator:
        daemon = operator.daemon
        daemon.database.write_bytes(operator.backup.read_bytes())
        for _ in range(2):
            assert await daemon.start()
            assert await daemon.stop() == 0
        (line,) = [line for line in daemon.records() if line["event"] == "restored_database"]
        assert line["level"] == "error"
        assert "dapd restore status" in line["remedy"]


async def test_a_backup_whose_key_is_missing_is_refused(tmp_path: Path) -> None:
    """One line names the key; the database that was there is still there."""
    async with operator_of(tmp_path) as operator:
        key = tmp_path / "keys" / "sealing-1.key"
        key.write_text(b64url_encode(os.urandom(32)))
        status, _, stderr = await operator.types(operator.backup, "--yes")
        assert (status, stderr.count("\n")) == (1, 1)
        assert "not in [datastore] sealing_keys" in stderr
        assert not list(operator.daemon.database.parent.glob("*.restoring*"))
        assert not list(operator.daemon.database.parent.glob("*.before-restore*"))
