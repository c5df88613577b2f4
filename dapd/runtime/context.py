"""The ``Context``: one object with everything that the server and the loops share."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Concatenate, ParamSpec, TypeVar

import trio

from dapd.config import Config
from dapd.crypto import Sealer
from dapd.datastore import Datastore, Tx
from dapd.errors import DatastoreError
from dapd.http import DapHttp
from dapd.protocol.task import Instant, Task
from dapd.reports import ReportRules
from dapd.runtime.certificates import Certificates
from dapd.runtime.clock import Clock, SafeClock
from dapd.runtime.disk import Disk
from dapd.runtime.history import History
from dapd.runtime.judged import JudgedRequests
from dapd.runtime.keyrings import Keyrings
from dapd.runtime.peers import Peers
from dapd.runtime.rates import Rates
from dapd.runtime.tasks import Tasks
from dapd.runtime.upload_queue import UploadQueue
from dapd.runtime.wake import Finished, JobName, Wake
from dapd.runtime.work import Work
from dapd.telemetry.logs import Seldom
from dapd.telemetry.metrics import Metrics

P = ParamSpec("P")
T = TypeVar("T")
_NATIVE_CALLS = 40


@dataclass(frozen=True, slots=True)
class Outside:
    """What comes from outside the program, so that tests can replace it; ``jitter`` returns a
    number in [0, 1).
    """

    clock: Clock
    safe_clock: SafeClock
    jitter: Callable[[], float]


@dataclass
class Context:
    """Everything that the server and the loops share.

    ``jobs`` wakes the dispatcher, ``chunks`` the creator. ``draining`` is set once, when the daemon
    begins to stop (I8). ``dapd.process.reload`` may replace the frozen ``config``, so read it here
    each time. ``config_path`` is its file; ``restart_for`` are the keys whose new values take
    effect only at a restart, as of the last reload. ``native_threads`` limits how many
    calls of ``compute`` run at a time. ``reloading`` is held by the one reload that runs.
    """

    config: Config
    clock: Clock
    safe_clock: SafeClock
    datastore: Datastore
    sealer: Sealer
    tasks: Tasks
    keyrings: Keyrings
    peers: Peers
    http: DapHttp
    work: Work
    disk: Disk
    uploads: UploadQueue
    rates: Rates
    jitter: Callable[[], float]
    jobs: Wake = field(default_factory=Wake)
    chunks: Wake = field(default_factory=Wake)
    finished: Finished = field(default_factory=Finished)
    judged: JudgedRequests = field(default_factory=JudgedRequests)
    seldom: Seldom = field(default_factory=Seldom)
    metrics: Metrics = field(default_factory=Metrics)
    history: History = field(default_factory=History)
    draining: trio.Event = field(default_factory=trio.Event)
    native_threads: trio.CapacityLimiter = field(
        default_factory=lambda: trio.CapacityLimiter(_NATIVE_CALLS)
    )
    certificates: Certificates = field(default_factory=Certificates)
    config_path: Path | None = None
    reloading: trio.Lock = field(default_factory=trio.Lock)
    restart_for: tuple[str, ...] = ()

    async def run(
        self, fn: Callable[Concatenate[Tx, P], T], *args: P.args, **kwargs: P.kwargs
    ) -> T:
        """Run a transaction and measure it; see ``Datastore.run``."""
        name = f"{fn.__module__.rpartition('.')[2]}.{fn.__name__}"
        started = time.perf_counter()
        try:
            return await self.datastore.run(fn, *args, **kwargs)
        except DatastoreError:
            self.metrics.transactions_failed.labels(name).inc()
            raise
        finally:
            elapsed = time.perf_counter() - started
            self.metrics.transaction_seconds.labels(name).observe(elapsed)

    async def read(
        self, fn: Callable[Concatenate[Tx, P], T], *args: P.args, **kwargs: P.kwargs
    ) -> T:
        """Run a reading transaction; see ``Datastore.read``."""
        return await self.datastore.read(fn, *args, **kwargs)

    async def compute(self, fn: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Run a function that computes for long, such as one of Rust's, in a thread; measure it."""
        started = time.perf_counter()
        try:
            return await trio.to_thread.run_sync(
                lambda: fn(*args, **kwargs), limiter=self.native_threads
            )
        finally:
            self.metrics.native_seconds.labels(fn.__name__).observe(time.perf_counter() - started)

    def now(self) -> int:
        """Return the machine's time, in milliseconds since the Epoch."""
        return self.clock.now()

    def instant(self) -> Instant:
        """Return the present time by both clocks."""
        state = self.safe_clock.look()
        leeway = int(1000 * self.config.reports.early_leeway)
        return Instant(state.now, state.safe, leeway, held=state.held is not None)

    def rules(self, task: Task) -> ReportRules:
        """Return the bounds that a report of ``task`` must keep at present."""
        return task.rules_at(self.instant())

    def job_ended(self, name: JobName) -> None:
        """Note that a job neither waits nor runs any more; answer the requests held for it."""
        _, job_id = name
        if job_id is not None:
            self.rates.end(job_id)
            self.judged.drop(job_id)
        self.finished.announce(name)

    def drain(self) -> None:
        """Begin to stop (I8): start no more steps, and answer held requests "not ready" now."""
        self.draining.set()
        self.jobs.ring()
        self.chunks.ring()
        self.finished.announce_all()


def make_context(
    config: Config,
    outside: Outside,
    datastore: Datastore,
    sealer: Sealer,
    http: DapHttp,
    nursery: trio.Nursery,
) -> Context:
    """Build a context whose work runs in ``nursery``. The caller still has to read its tasks and
    keys, and to start the loop that empties its upload queue.
    """
    leader = config.leader
    disk = Disk(datastore.path, config.disk.min_free_bytes)
    return Context(
        config=config,
        clock=outside.clock,
        safe_clock=outside.safe_clock,
        datastore=datastore,
        sealer=sealer,
        tasks=Tasks(datastore, sealer),
        keyrings=Keyrings(datastore, sealer),
        peers=Peers(leader.permits_per_peer, outside.clock, outside.jitter),
        http=http,
        work=Work(nursery, config.helper.max_running),
        disk=disk,
        uploads=UploadQueue(
            leader.upload_queue, leader.upload_group_requests, leader.upload_group_bytes, disk
        ),
        rates=Rates(),
        jitter=outside.jitter,
    )
