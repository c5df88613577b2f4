"""Two daemons as ``dapd.app`` runs them, with tasks, a client and a collector.

They run in this process and without TLS; ``dapd demo`` starts real processes.
"""

from __future__ import annotations

import base64
import secrets
import sys
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import msgspec
import structlog
import trio

from dapd.app import Daemon, run_daemon
from dapd.client import Client, Uploaded
from dapd.collector import Collector, Query, Result
from dapd.commits.tasks import add_task
from dapd.config import Config
from dapd.messages.common import BatchMode
from dapd.protocol.task import TaskSettings
from dapd.runtime.clock import Clock
from dapd.runtime.context import Context
from dapd.server.sockets import reserved_port
from dapd.taskfile import (
    TaskDraft,
    TaskFiles,
    aggregator_task,
    new_task,
    parse_vdaf_spec,
    write_task_files,
)
from dapd.vdaf import Measurement

_QUICK: dict[str, dict[str, Any]] = {
    "leader": {"retry_min": 0.05, "retry_max": 1.0, "max_wait": 0.05},
    "disk": {"min_free_bytes": 0},
}
"""Settings that differ from a daemon's defaults, so that tests don't wait longer than needed."""


@dataclass
class Aggregator:
    """A Leader or Helper that can be stopped and started again on the same database and port."""

    directory: Path
    port: int
    settings: dict[str, dict[str, Any]]
    clock: Clock | None
    nursery: trio.Nursery
    daemon: Daemon | None = None
    _stop: trio.Event = field(default_factory=trio.Event)
    _stopped: trio.Event = field(default_factory=trio.Event)

    @property
    def url(self) -> str:
        """The base URL."""
        return f"http://127.0.0.1:{self.port}/"

    @property
    def context(self) -> Context:
        """The daemon's internals, such as its database, for tests that inspect them."""
        assert self.daemon is not None, "the Aggregator runs"
        return self.daemon.context

    async def start(self) -> None:
        """Start the daemon and return once it listens."""
        self._stop, self._stopped = trio.Event(), trio.Event()
        self.daemon = await self.nursery.start(self._serve)

    async def stop(self) -> None:
        """Stop the daemon as SIGTERM does, and return once its datastore is closed."""
        self._stop.set()
        await self._stopped.wait()
        self.daemon = None

    async def _serve(self, *, task_status: trio.TaskStatus[Daemon]) -> None:
        try:
            await run_daemon(
                self.config(), stop=self._stop, clock=self.clock, task_status=task_status
            )
        finally:
            self._stopped.set()

    def config(self) -> Config:
        """What the next ``start`` uses; makes the sealing key if there is none."""
        key = self.directory / "sealing.key"
        if not key.exists():
            self.directory.mkdir(parents=True, exist_ok=True)
            key.touch(mode=0o600)
            key.write_bytes(base64.urlsafe_b64encode(secrets.token_bytes(32)).rstrip(b"="))
        tables: dict[str, dict[str, Any]] = {
            "server": {"listen": f"127.0.0.1:{self.port}"},
            "datastore": {"path": self.directory / "dapd.sqlite", "sealing_keys": [key]},
        }
        for each in (_QUICK, self.settings):
            for table, values in each.items():
                tables[table] = {**tables.get(table, {}), **values}
        return msgspec.convert(tables, Config, dec_hook=lambda _, value: value)


@dataclass(frozen=True)
class PairTask:
    """A task that both Aggregators serve, with the files of its four parties."""

    files: TaskFiles
    pair: Pair

    @property
    def task_id(self) -> bytes:
        """The task id, 32 bytes."""
        return self.files.client.task_id

    async def upload(
        self, measurements: Sequence[Measurement], *, time: float | None = None
    ) -> Uploaded:
        """Upload with dapd's client. ``time`` is seconds since the Epoch; by default, now."""
        # A pair listens on loopback only, whatever the names in its endpoints.
        async with Client(
            self.files.client, allow_insecure_http=True, clock=self.pair.seconds
        ) as client:
            return await client.upload(measurements, time=time)

    async def collect(self, query: Query | None = None) -> Result:
        """Collect with dapd's collector; without a query, collect all reports so far.

        That is the next batch, or the interval up to the current time.
        """
        asked = query or self.everything()
        async with (
            Collector(self.files.collector, allow_insecure_http=True) as collector,
            collector.collect(asked) as result,
        ):
            return result

    def everything(self) -> Query:
        """Return the query for all reports so far."""
        configuration = self.files.client.configuration
        if configuration.batch_mode is BatchMode.LEADER_SELECTED:
            return Query.next_batch()
        precision = configuration.time_precision
        return Query.interval(0, (int(self.pair.seconds()) // precision + 1) * precision)

    def write_files(self, directory: Path) -> list[Path]:
        """Write ``leader.toml``, ``helper.toml``, ``collector.toml`` and ``client.toml``."""
        return write_task_files(directory, self.files)


@dataclass(frozen=True)
class Pair:
    """A running Leader and Helper."""

    leader: Aggregator
    helper: Aggregator

    def seconds(self) -> float:
        """Return the time by the pair's clock, in seconds since the Epoch."""
        clock = self.leader.clock
        return time.time() if clock is None else clock.now() / 1000

    async def new_task(
        self,
        vdaf: str = "count",
        *,
        batch_mode: Literal["time-interval", "leader-selected"] = "time-interval",
        min_batch_size: int = 2,
        time_precision: int = 3600,
        settings: TaskSettings | None = None,
        helper_settings: TaskSettings | None = None,
        **agreed: Any,
    ) -> PairTask:
        """Make a task and add it to both. ``vdaf`` is as in ``dapd task new --vdaf``.

        ``settings`` are the local settings of both sides, ``helper_settings`` those of the Helper
        if they differ; ``agreed`` are more keys of a task file, such as the endpoint of a proxy
        between the two.
        """
        agreed.setdefault("leader_aggregator_endpoint", self.leader.url)
        agreed.setdefault("helper_aggregator_endpoint", self.helper.url)
        files = new_task(
            TaskDraft(
                vdaf=parse_vdaf_spec(vdaf),
                batch_mode=batch_mode,
                min_batch_size=min_batch_size,
                time_precision=time_precision,
                **agreed,
            ),
            allow_tiny_batches=True,
        )
        for side, file, local in (
            (self.leader, files.leader, settings),
            (self.helper, files.helper, helper_settings or settings),
        ):
            context = side.context
            await context.run(
                add_task, aggregator_task(file, local or TaskSettings()), context.sealer
            )
            await context.tasks.reload()
        return PairTask(files, self)


def _log_to_standard_error() -> None:
    """Log as structlog does, but without the local variables in tracebacks: they contain keys, and
    rendering them takes seconds, in which requests time out.
    """
    *processors, _ = structlog.get_config()["processors"]
    renderer = structlog.dev.ConsoleRenderer(exception_formatter=structlog.dev.plain_traceback)
    structlog.configure(
        [*processors, renderer], logger_factory=lambda *_: structlog.PrintLogger(sys.stderr)
    )


@asynccontextmanager
async def running_pair(
    directory: Path,
    *,
    leader: dict[str, dict[str, Any]] | None = None,
    helper: dict[str, dict[str, Any]] | None = None,
    clock: Clock | None = None,
) -> AsyncIterator[Pair]:
    """Run a Leader and a Helper with their files below ``directory``.

    ``leader`` and ``helper`` are tables of their configurations, such as
    ``{"helper": {"mode": "sync"}}``; other keys have a daemon's defaults, except for shorter waits.
    Both log to standard error unless the program has configured structlog.
    """
    if not structlog.is_configured():
        _log_to_standard_error()
    with reserved_port() as leader_port, reserved_port() as helper_port:
        async with trio.open_nursery() as nursery:
            pair = Pair(
                Aggregator(directory / "leader", leader_port, leader or {}, clock, nursery),
                Aggregator(directory / "helper", helper_port, helper or {}, clock, nursery),
            )
            await pair.helper.start()
            await pair.leader.start()
            try:
                yield pair
            finally:
                with trio.CancelScope(shield=True):
                    for side in (pair.leader, pair.helper):
                        if side.daemon is not None:
                            await side.stop()
