"""What a test's own hands do to a running pair: bad reports, jobs without a Leader, looking inside.

Times are in the task's time precision; ``NOON`` is when the pair's clock starts.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import trio

from dapd.collector import Query
from dapd.datastore import counters as counter_table
from dapd.datastore import open_for_command
from dapd.datastore.check import Finding, check
from dapd.http import DapHttp, Outcome, Processing, Ready, resource_url
from dapd.messages.aggregation import aggregation_job_init_req
from dapd.messages.common import HpkeConfig, HpkeConfigList, MediaType, b64url_encode
from dapd.protocol.task import END_OF_TIME, Task, TaskSettings
from dapd.reports import (
    Extensions,
    LeaderFinish,
    LeaderStart,
    ReportRules,
    leader_finish,
    leader_start,
    open_uploads,
    parse_upload_errors,
    seal_reports,
    shard,
    split_ids,
)
from dapd.runtime.clock import Clock
from dapd.runtime.context import Context
from dapd.taskfile import aggregator_task
from dapd.testing import Pair, PairTask, running_pair
from dapd.testing.pair import Aggregator
from dapd.vdaf import Measurement, make_vdaf

PRECISION = 3600
NOON = 500_000
"""A report's time at the start of a test."""
DEADLINE = 120
"""Seconds after which a wait is a failure; nothing takes that long."""
_JOB = bytes(16)
_ANY_TIME = ReportRules(
    too_early_after=END_OF_TIME, task_start=0, task_end=END_OF_TIME, expired_before=0
)


class HandClock:
    """Goes as clocks do, from the middle of ``NOON`` on, and ahead when the test says so."""

    def __init__(self) -> None:
        self._started = time.monotonic_ns()
        self._skipped = 0
        self._wrong = NOON * PRECISION * 1000 + PRECISION * 500

    def now(self) -> int:
        return self._wrong + self.elapsed()

    def elapsed(self) -> int:
        return self._skipped + (time.monotonic_ns() - self._started) // 1_000_000

    def advance(self, seconds: float) -> None:
        """Let so much time pass."""
        self._skipped += int(seconds * 1000)

    def jump(self, seconds: float) -> None:
        """Set the clock ahead or back, as an operator or NTP may."""
        self._wrong += int(seconds * 1000)


@asynccontextmanager
async def hand_pair(
    directory: Path,
    *,
    leader: dict[str, dict[str, Any]] | None = None,
    helper: dict[str, dict[str, Any]] | None = None,
    clock: Clock | None = None,
) -> AsyncIterator[tuple[Pair, DapHttp]]:
    """A pair on a clock of its own, and a client, with a deadline for the whole test.

    Whatever the test did, both databases are whole after it.
    """
    with trio.fail_after(DEADLINE):
        async with (
            DapHttp() as http,
            running_pair(
                directory, leader=leader, helper=helper, clock=clock or HandClock()
            ) as pair,
        ):
            yield pair, http
    for side in (pair.leader, pair.helper):
        assert findings(side.directory / "dapd.sqlite") == []


def findings(database: Path) -> list[Finding]:
    """What ``dapd datastore check`` would say of the database of a daemon that is stopped."""
    opened = open_for_command(database, holder="a test", now=0)
    try:
        return opened.datastore.read_sync(check)
    finally:
        opened.close()


def at_noon(duration: int = 1) -> Query:
    """The query for all reports from ``NOON`` on, for so many time precisions."""
    return Query.interval(NOON * PRECISION, duration * PRECISION)


def make_ids(count: int, label: str) -> bytes:
    """Report ids that are the same in every run."""
    return b"".join(hashlib.sha256(f"{label} {n}".encode()).digest()[:16] for n in range(count))


def flip(data: bytes, at: int = 0) -> bytes:
    """The bytes with one bit changed."""
    at %= len(data)
    return data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :]


@dataclass
class Hands:
    """One task of a running pair, in the hands of a test. ``http`` is the test's to close."""

    task: PairTask
    http: DapHttp

    def __post_init__(self) -> None:
        self.pair = self.task.pair
        self.id_text = b64url_encode(self.task.task_id)
        self._vdaf = make_vdaf(self.task.files.client.configuration.vdaf)
        self._configs = {
            "leader": _config(self.pair.leader),
            "helper": _config(self.pair.helper),
        }

    def seal(
        self,
        measurements: Sequence[Measurement],
        label: str,
        *,
        at: int = NOON,
        public: Extensions = (),
        leader: Extensions = (),
        helper: Extensions = (),
        spoil: dict[str, Callable[[bytes], bytes]] | None = None,
        unknown: Sequence[str] = (),
    ) -> list[bytes]:
        """Encoded ``Report``s.

        ``spoil`` does something to the public share or one side's input share before it is sealed;
        ``unknown`` names the sides whose HPKE config id is one that they don't have.
        """
        ids = make_ids(len(measurements), label)
        columns = shard(self._vdaf, self.task.task_id, cast("Sequence[int]", measurements), ids)
        spoilt = [
            [(spoil or {}).get(name, bytes)(share) for share in column]
            for name, column in zip(("public", "leader", "helper"), columns, strict=True)
        ]
        configs = [
            replace(config, id=config.id ^ 0x80) if side in unknown else config
            for side, config in self._configs.items()
        ]
        return seal_reports(
            self.task.task_id,
            self.task.files.client.configuration.encode(),
            configs[0].as_tuple,
            configs[1].as_tuple,
            ids,
            [at] * len(measurements),
            *spoilt,
            public_extensions=public,
            leader_extensions=leader,
            helper_extensions=helper,
        )

    async def upload(self, reports: Sequence[bytes]) -> list[tuple[bytes, int]]:
        """Send reports as they are; the Leader's (report id, ReportError) of those it rejects."""
        url = resource_url(self.pair.leader.url, "tasks", self.id_text, "reports")
        outcome = await self.http.upload(url, b"".join(reports))
        assert isinstance(outcome, Ready), outcome
        return parse_upload_errors(outcome.body)

    def start_job(self, reports: Sequence[bytes], batch_id: bytes = b"") -> Job:
        """What a Leader would ask its Helper to aggregate: reports that this Leader has not seen
        and does not judge, but for what it can't open.
        """
        leader = self.pair.leader.context
        task = aggregator_task(self.task.files.leader, TaskSettings())
        group = open_uploads(
            [(task.parameters, _ANY_TIME, b"".join(reports))],
            leader.keyrings.keyring,
            leader.sealer,
        )
        chunks = [
            chunk[3:] for part in group.parts for chunk in part.chunks(bytes(part.count), 1000)
        ]
        ids = split_ids(b"".join(column for column, _, _ in chunks))
        assert len(ids) == len(reports), "this Leader opens all"
        started = leader_start(task.parameters, _ANY_TIME, leader.sealer, _JOB, chunks)
        return Job(self, task, started, batch_id, ids)

    async def counters(self, side: Aggregator) -> dict[str, int]:
        """One side's counters of this task."""
        return await side.context.read(counter_table.of_task, await self.task_pk(side))

    async def task_pk(self, side: Aggregator) -> int:
        found = await side.context.tasks.find(self.task.task_id)
        assert found is not None
        return found.task_pk

    async def until_counted(self, side: Aggregator, name: str, value: int) -> None:
        """Wait until a counter of one side has reached ``value``."""

        async def reached() -> bool:
            return (await self.counters(side)).get(name, 0) >= value

        await until(reached)


@dataclass
class Job:
    """An aggregation job of the test's own; ``ids`` are in the order of its columns."""

    hands: Hands
    task: Task
    started: LeaderStart
    batch_id: bytes
    ids: list[bytes]

    @property
    def request(self) -> bytes:
        """The ``AggregationJobInitReq``."""
        return aggregation_job_init_req(0, self.batch_id, self.started.verify_inits)

    async def send(self, body: bytes | None = None) -> Outcome:
        """POST it to the Helper, once; or another body in its place."""
        url = resource_url(
            self.hands.pair.helper.url, "tasks", self.hands.id_text, "aggregation_jobs"
        )
        return await self.hands.http.create(
            url, body or self.request, MediaType.AGGREGATION_JOB_INIT_REQ, self.token
        )

    async def run(self) -> LeaderFinish:
        """POST it, poll it to its end, and judge the answer."""
        outcome = await self.send()
        while isinstance(outcome, Processing):
            outcome = await self.hands.http.poll(
                outcome.location, self.token, MediaType.AGGREGATION_JOB_RESP, step=0
            )
        assert isinstance(outcome, Ready), outcome
        return self.finish(outcome.body)

    def finish(self, response: bytes) -> LeaderFinish:
        return leader_finish(
            self.task.parameters,
            self.hands.pair.leader.context.sealer,
            _JOB,
            self.batch_id or None,
            self.started.state,
            response,
        )

    @property
    def token(self) -> str:
        return self.hands.task.files.leader.aggregator_auth_token


async def until(condition: Callable[[], Awaitable[bool]]) -> None:
    """Ask the database until it says so; the test's deadline bounds it."""
    while not await condition():  # noqa: ASYNC110 - a database rings no bell for its readers
        await trio.sleep(0.005)


async def until_down(context: Context, peer: str) -> None:
    """Wait until an exchange with the peer at this URL has failed."""

    async def failing() -> bool:
        return context.peers.at(peer).failures > 0

    await until(failing)


def _config(side: Aggregator) -> HpkeConfig:
    return HpkeConfigList.decode(side.context.keyrings.published).configs[0]
