"""``/metrics``, ``/healthz`` and ``/readyz``, also with many scrapers at once."""

from __future__ import annotations

from pathlib import Path

import pytest
import structlog.testing
import trio
import trio.testing

from dapd.admin import monitoring
from dapd.admin.gauges import Gauges
from dapd.admin.monitoring import healthy, ready
from dapd.config import Disk
from dapd.errors import Abort, DatastoreError
from dapd.runtime.context import Context
from tests.contexts import make_config, open_context


class Looks:
    """Holds each refresh of the gauges until the test releases it."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.begun = 0
        self.may_end = trio.Event()
        self.failure: Exception | None = None
        real = Gauges.refresh

        async def refresh(gauges: Gauges) -> None:
            self.begun += 1
            await self.may_end.wait()
            if self.failure is not None:
                failure, self.failure = self.failure, None
                raise failure
            await real(gauges)

        monkeypatch.setattr(Gauges, "refresh", refresh)


async def test_scrapes_at_the_same_time_share_a_look(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They read the database once; the next scrape reads it again."""
    looks = Looks(monkeypatch)
    async with open_context(make_config(tmp_path)) as context:
        show = monitoring.documents(context)["/metrics"]
        bodies = []

        async def scrape() -> None:
            bodies.append(await show(context, {}))

        async with trio.open_nursery() as nursery:
            for _ in range(20):
                nursery.start_soon(scrape)
            await trio.testing.wait_all_tasks_blocked()
            looks.may_end.set()
        assert (looks.begun, len(bodies)) == (1, 20)
        assert all(b"dapd_tasks" in body for _, _, body in bodies)
        await scrape()
        assert looks.begun == 2


async def test_a_look_that_fails_fails_its_own_scrape_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Scrapes that waited for it refresh for themselves; a cancelled one blocks no other."""
    looks = Looks(monkeypatch)
    looks.failure = DatastoreError("the disk is gone")
    async with open_context(make_config(tmp_path)) as context:
        show = monitoring.documents(context)["/metrics"]
        outcomes = []

        async def scrape() -> None:
            try:
                status, _, _ = await show(context, {})
                outcomes.append(status)
            except DatastoreError:
                outcomes.append(503)

        async with trio.open_nursery() as nursery:
            for _ in range(3):
                nursery.start_soon(scrape)
            await trio.testing.wait_all_tasks_blocked()
            looks.may_end.set()
        assert sorted(outcomes) == [200, 200, 503]
        assert looks.begun == 2
        looks.may_end = trio.Event()
        with trio.move_on_after(0):
            await scrape()
        looks.may_end.set()
        await scrape()
        assert outcomes[3:] == [200]


async def test_ready_until_it_stops(tmp_path: Path) -> None:
    """A draining daemon is healthy, but not ready."""
    async with open_context(make_config(tmp_path)) as context:
        assert (await ready(context, {}))[0] == 200
        context.drain()
        with pytest.raises(Abort, match="stopping") as refused:
            await ready(context, {})
        assert refused.value.status == 503
        assert (await healthy(context, {}))[0] == 200


async def test_not_ready_while_the_disk_is_nearly_full(tmp_path: Path) -> None:
    """The daemon refuses uploads and new jobs then."""
    config = make_config(tmp_path, disk=Disk(min_free_bytes=1 << 50))
    async with open_context(config) as context:
        with pytest.raises(Abort, match="nearly full") as refused:
            await ready(context, {})
        assert refused.value.status == 503


async def test_not_ready_without_the_database_and_the_log_says_why_once_a_minute(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The path is public: the answer names no file, and many requests log one line."""

    async def broken(*_: object) -> None:
        raise DatastoreError("/var/lib/dapd/dapd.sqlite: disk I/O error")

    async with open_context(make_config(tmp_path)) as context:
        monkeypatch.setattr(Context, "read", broken)
        with structlog.testing.capture_logs() as logs:
            for _ in range(3):
                with pytest.raises(Abort) as refused:
                    await ready(context, {})
        assert refused.value.status == 503
        assert "sqlite" not in refused.value.detail
        assert [line["error"] for line in logs] == ["/var/lib/dapd/dapd.sqlite: disk I/O error"]
