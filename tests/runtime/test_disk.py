"""What the log says of low disk space, beside the refused uploads (rule E4)."""

from __future__ import annotations

from pathlib import Path

import structlog
import trio.testing

from dapd.runtime.disk import Disk


async def test_e4_the_log_says_once_that_the_disk_is_low_and_once_that_it_has_room(
    tmp_path: Path, autojump_clock: trio.testing.MockClock
) -> None:
    """Once, however often the disk is checked: an operator may watch only the journal."""
    disk = Disk(tmp_path / "dapd.sqlite", 0)
    with structlog.testing.capture_logs() as logs:
        for mark, low in ((0, False), (1 << 60, True), (1 << 60, True), (0, False), (0, False)):
            disk.min_free_bytes = mark
            await trio.sleep(1)
            assert disk.low is low
    assert [line["event"] for line in logs] == ["disk_low", "disk_has_room"]
    assert "make room" in logs[0]["remedy"]
