"""The pair that users get in their own tests."""

from __future__ import annotations

import socket
import subprocess
import sys
from pathlib import Path

import pytest
import structlog

from dapd.testing import running_pair
from dapd.testing.plugin import BlockingPair


def test_the_fixture_gives_a_pair_without_trio(dap_pair: BlockingPair) -> None:
    """Three lines from nothing to an exact result (docs/testing-your-client.md)."""
    task = dap_pair.new_task("histogram:length=4", min_batch_size=3)
    assert task.upload([0, 1, 1]).accepted == 3
    assert task.collect().value == [1, 2, 0, 0]


def test_the_commands_work_against_the_pair(dap_pair: BlockingPair, tmp_path: Path) -> None:
    """The task's files are what any client gets."""
    task = dap_pair.new_task("sum:max_measurement=100", min_batch_size=2)
    task.write_files(tmp_path / "task")
    upload = subprocess.run(
        [
            sys.executable,
            "-m",
            "dapd",
            "upload",
            "--task",
            tmp_path / "task/client.toml",
            "40",
            "2",
        ],
        check=True,
        capture_output=True,
        text=True,
    )
    assert "2 reports" in upload.stdout + upload.stderr
    assert task.collect().value == 42


async def test_an_aggregator_can_be_stopped_and_started_again(tmp_path: Path) -> None:
    """Whatever was accepted is still there (I8)."""
    async with running_pair(tmp_path) as pair:
        task = await pair.new_task(min_batch_size=3)
        await task.upload([1, 0, 1])
        await pair.leader.stop()
        await pair.helper.stop()
        await pair.helper.start()
        await pair.leader.start()
        result = await task.collect()
        assert (result.value, result.report_count) == (2, 3)


async def test_nobody_else_gets_the_port_of_a_stopped_aggregator(tmp_path: Path) -> None:
    """It starts again on it, whatever else looks for a free port meanwhile."""
    async with running_pair(tmp_path) as pair:
        await pair.helper.stop()
        with socket.socket() as other, pytest.raises(OSError, match="in use"):
            other.bind(("127.0.0.1", pair.helper.port))
        await pair.helper.start()


async def test_a_failure_is_logged_without_local_variables(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """To draw them takes longer than a request may, and they hold keys (I9)."""
    structlog.reset_defaults()
    key = "a" * 3 + "key"
    async with running_pair(tmp_path):
        try:
            raise RuntimeError("a fault")
        except RuntimeError:
            structlog.get_logger().exception("step_failed")
    said = capsys.readouterr().err
    assert "RuntimeError: a fault" in said
    assert key not in said
