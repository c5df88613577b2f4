"""What tests are made of: a pair of tasks with their keys, reports, job requests, datastores.

Everything is real: the Rust extension shards, seals and verifies, SQLite files store.
"""

from __future__ import annotations

import secrets
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, cast

import trio

from dapd import config
from dapd.config.keyfiles import read_sealing_keys
from dapd.crypto import HpkeKeypair, Keyring, Sealer, hash_token, make_sealer
from dapd.datastore import Datastore, Tx, batches, keys, open_for_daemon
from dapd.datastore import tasks as task_table
from dapd.datastore.batches import Contribution
from dapd.datastore.opening import Opened
from dapd.http import DapHttp
from dapd.messages.aggregation import AggregationJobInitHead, leader_selected_batch_id_extension
from dapd.messages.common import (
    BatchMode,
    Extension,
    HpkeConfig,
    Interval,
    Role,
    b64url_encode,
)
from dapd.messages.task import (
    Prio3Count,
    TaskConfiguration,
    VdafConfiguration,
    task_interval_extension,
)
from dapd.protocol.task import END_OF_TIME, Task, TaskSettings
from dapd.reports import (
    ReportRules,
    leader_finish,
    leader_start,
    open_uploads,
    seal_reports,
    shard,
)
from dapd.runtime.clock import Clock, SafeClock
from dapd.runtime.context import Context, Outside, make_context

if TYPE_CHECKING:
    from dapd.reports import Chunk

X25519 = (0x0020, 0x0001, 0x0001)
PRECISION = 3600
NOW = 1_800_000_000_000
"""The time of tests, in milliseconds; the start of a time precision."""
TIME = NOW // 1000 // PRECISION
"""``NOW`` as a report's time."""
AGGREGATOR_TOKEN = "aggregator-token"
COLLECTOR_TOKEN = "collector-token"
SEALING_KEY = bytes(range(32))
ANY_TIME = ReportRules(
    too_early_after=END_OF_TIME, task_start=0, task_end=END_OF_TIME, expired_before=0
)
Measurements = Sequence[int] | Sequence[Sequence[int]]


@dataclass(frozen=True)
class Pair:
    """One task as both Aggregators have it, and every party's keys."""

    leader: Task
    helper: Task
    leader_key: HpkeKeypair
    helper_key: HpkeKeypair
    collector_key: HpkeKeypair
    sealer: Sealer

    @property
    def configuration(self) -> TaskConfiguration:
        return self.leader.configuration


def task_pair(
    vdaf: VdafConfiguration | None = None,
    *,
    batch_mode: BatchMode = BatchMode.TIME_INTERVAL,
    min_batch_size: int = 1,
    task_interval: Interval | None = None,
    settings: TaskSettings | None = None,
) -> Pair:
    """A new task; its ``task_pk`` is 0 until ``add_task`` stores it."""
    configuration = TaskConfiguration(
        task_info=b"test",
        leader_aggregator_endpoint="http://127.0.0.1:1/leader/",
        helper_aggregator_endpoint="http://127.0.0.1:2/helper/",
        time_precision=PRECISION,
        min_batch_size=min_batch_size,
        batch_mode=batch_mode,
        vdaf=vdaf if vdaf is not None else Prio3Count(),
        extensions=(task_interval_extension(task_interval),) if task_interval else (),
    )
    collector_key = HpkeKeypair.generate(9, *X25519)
    leader = Task(
        task_pk=0,
        task_id=secrets.token_bytes(32),
        role=Role.LEADER,
        configuration_bytes=configuration.encode(),
        verify_key=secrets.token_bytes(32),
        verification_key_id=0,
        collector_hpke_config=HpkeConfig(*collector_key.config),
        aggregator_token=AGGREGATOR_TOKEN,
        inbound_token_hashes=(hash_token(COLLECTOR_TOKEN),),
        settings=settings or TaskSettings(),
    )
    helper = replace(
        leader,
        role=Role.HELPER,
        aggregator_token=None,
        inbound_token_hashes=(hash_token(AGGREGATOR_TOKEN),),
    )
    return Pair(
        leader,
        helper,
        HpkeKeypair.generate(1, *X25519),
        HpkeKeypair.generate(2, *X25519),
        collector_key,
        make_sealer([SEALING_KEY]),
    )


def open_store(path: Path) -> Opened:
    """A datastore as the daemon opens it, created if need be."""
    return open_for_daemon(path, holder="a test", now=NOW, on_lost=_lost)


def add_task(datastore: Datastore, task: Task, pair: Pair) -> Task:
    """Store the task, and its Aggregator's key pair; the task with its ``task_pk``."""
    keypair = pair.leader_key if task.is_leader else pair.helper_key
    datastore.run_sync(keys.insert_keypair, keypair, pair.sealer, "active", NOW)
    return datastore.run_sync(task_table.insert, task, pair.sealer)


def report_ids(count: int) -> bytes:
    return secrets.token_bytes(16 * count)


def make_reports(
    pair: Pair,
    measurements: Measurements,
    *,
    ids: bytes | None = None,
    times: Sequence[int] | None = None,
    helper_extensions: Sequence[tuple[int, bytes]] = (),
    tamper_with: Sequence[int] = (),
) -> list[bytes]:
    """Encoded ``Report``s, all at ``TIME`` unless ``times`` says otherwise.

    The Helper's shares of the rows in ``tamper_with`` are another report's: their proof fails.
    """
    ids = ids if ids is not None else report_ids(len(measurements))
    public, leader_shares, helper_shares = shard(
        pair.leader.vdaf, pair.leader.task_id, measurements, ids
    )
    for row in tamper_with:
        one = cast("Measurements", [measurements[row]])
        _, _, other = shard(pair.leader.vdaf, pair.leader.task_id, one, report_ids(1))
        helper_shares[row] = other[0]
    return seal_reports(
        pair.leader.task_id,
        pair.leader.configuration_bytes,
        pair.leader_key.config,
        pair.helper_key.config,
        ids,
        times if times is not None else [TIME] * len(measurements),
        public,
        leader_shares,
        helper_shares,
        helper_extensions=helper_extensions,
    )


def leader_chunks(pair: Pair, reports: Sequence[bytes], max_rows: int = 1000) -> list[Chunk]:
    """What the Leader would store of an upload of these reports."""
    group = open_uploads(
        [(pair.leader.parameters, ANY_TIME, b"".join(reports))],
        Keyring([pair.leader_key]),
        pair.sealer,
    )
    return [chunk for part in group.parts for chunk in part.chunks(bytes(part.count), max_rows)]


@dataclass(frozen=True)
class LeaderJobState:
    """A Leader's aggregation job as it is sent: ``body`` is the ``AggregationJobInitReq``."""

    pair: Pair
    job_id: bytes
    batch_id: bytes | None
    state: bytes
    body: bytes

    def finish(self, response: bytes) -> bytes:
        """The outcomes that the Leader takes from the Helper's response."""
        finished = leader_finish(
            self.pair.leader.parameters,
            self.pair.sealer,
            self.job_id,
            self.batch_id,
            self.state,
            response,
        )
        return finished.outcomes


def leader_job(
    pair: Pair,
    reports: Sequence[bytes],
    *,
    batch_id: bytes | None = None,
    head: AggregationJobInitHead | None = None,
) -> LeaderJobState:
    """One job over these reports; with a head of its own if the test wants one."""
    job_id = secrets.token_bytes(16)
    columns = [chunk[3:] for chunk in leader_chunks(pair, reports)]
    started = leader_start(pair.leader.parameters, ANY_TIME, pair.sealer, job_id, columns)
    if head is None:
        head = AggregationJobInitHead(extensions=batch_extension(batch_id))
    body = head.encode() + started.verify_inits
    return LeaderJobState(pair, job_id, batch_id, started.state, body)


def batch_extension(batch_id: bytes | None) -> tuple[Extension, ...]:
    return () if batch_id is None else (leader_selected_batch_id_extension(batch_id),)


@dataclass
class StillClock:
    """Both clocks stand until a test moves them: ``time`` alone is a jump, ``advance`` is time that
    passes.
    """

    time: int = NOW
    passed: int = 0

    def now(self) -> int:
        return self.time

    def elapsed(self) -> int:
        return self.passed

    def advance(self, seconds: float) -> None:
        self.time += int(seconds * 1000)
        self.passed += int(seconds * 1000)


def make_config(
    directory: Path,
    *,
    helper: config.Helper | None = None,
    leader: config.Leader | None = None,
    disk: config.Disk | None = None,
) -> config.Config:
    """A configuration whose database is in ``directory``, with ``SEALING_KEY`` as its key."""
    key = directory / "sealing.key"
    key.write_text(b64url_encode(SEALING_KEY))
    key.chmod(0o600)
    return config.Config(
        datastore=config.Datastore(path=directory / "dapd.sqlite", sealing_keys=(key,)),
        helper=helper or config.Helper(),
        leader=leader or config.Leader(),
        disk=disk or config.Disk(min_free_bytes=0),
    )


@asynccontextmanager
async def context_around(
    settings: config.Config, datastore: Datastore, sealer: Sealer, clock: Clock
) -> AsyncIterator[Context]:
    """What a daemon's handlers and steps get, but without chance; no server, no loops.

    What is still at work at the end is cancelled, as by a daemon whose grace is over.
    """
    outside = Outside(clock, SafeClock(clock, None, 0), lambda: 0.0)
    async with DapHttp(timeout=60) as http, trio.open_nursery() as nursery:
        context = make_context(settings, outside, datastore, sealer, http, nursery)
        await context.tasks.refresh()
        await context.keyrings.refresh()
        yield context
        nursery.cancel_scope.cancel()


@asynccontextmanager
async def open_context(
    settings: config.Config, *tasks: tuple[Task, Pair]
) -> AsyncIterator[Context]:
    """``context_around`` the database of ``settings``, with ``tasks`` in it; its clock stands."""
    opened = open_store(settings.datastore.path)
    sealer = make_sealer(read_sealing_keys(settings))
    for task, pair in tasks:
        add_task(opened.datastore, task, pair)
    try:
        async with context_around(settings, opened.datastore, sealer, StillClock()) as context:
            yield context
    finally:
        opened.close()


def contributions(tx: Tx, task_pk: int, lo: bytes, hi: bytes) -> list[Contribution]:
    """What the buckets of [lo, hi) got."""
    pages = batches.contributions_in_pages(tx, task_pk, lo, hi)
    return [part for page in pages for part in page]


def _lost(message: str) -> None:
    raise AssertionError(message)
