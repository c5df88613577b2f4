"""A running pair, and one of its tasks as a test drives it: crafted reports and jobs, counters.

Times are in the task's time precision; the pair's clock starts in the middle of ``TIME``.
"""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import trio

from dapd.collector import Query
from dapd.datastore import counters as counter_table
from dapd.http import DapHttp, Outcome, Processing, Ready, resource_url
from dapd.messages.aggregation import aggregation_job_init_req
from dapd.messages.common import HpkeConfigList, MediaType, b64url_encode
from dapd.protocol.task import Task, TaskSettings
from dapd.reports import (
    Extensions,
    LeaderFinish,
    LeaderStart,
    leader_finish,
    leader_start,
    open_uploads,
    parse_upload_errors,
    split_ids,
)
from dapd.runtime.clock import Clock
from dapd.runtime.context import Context
from dapd.taskfile import aggregator_task
from dapd.testing import Pair, PairTask, running_pair
from dapd.testing.pair import Aggregator
from dapd.vdaf import Measurement, make_vdaf
from tests.clock import NOW, PRECISION, TIME, ManualClock
from tests.database_dump import findings
from tests.task_pair import ANY_TIME, CraftingClient, Spoil, make_ids

if TYPE_CHECKING:
    from dapd._native import HpkeConfigTuple

DEADLINE = 120
"""Seconds after which a wait is a failure; nothing takes that long."""
_JOB = bytes(16)


def running_clock() -> ManualClock:
    """A clock that goes as clocks do, from the middle of ``TIME`` on."""
    return ManualClock(NOW + 500 * PRECISION, ticks=time.monotonic)


@asynccontextmanager
async def open_pair(
    directory: Path,
    *,
    leader: dict[str, dict[str, Any]] | None = None,
    helper: dict[str, dict[str, Any]] | None = None,
    clock: Clock | None = None,
) -> AsyncIterator[tuple[Pair, DapHttp]]:
    """A pair and a DAP client, with a deadline for the whole test.

    Afterwards ``dapd datastore check`` must find nothing in either database, whatever the test did.
    """
    with trio.fail_after(DEADLINE):
        async with (
            DapHttp() as http,
            running_pair(
                directory, leader=leader, helper=helper, clock=clock or running_clock()
            ) as pair,
        ):
            yield pair, http
    for side in (pair.leader, pair.helper):
        assert findings(side.directory / "dapd.sqlite") == []


def query_at(time: int = TIME, duration: int = 1) -> Query:
    """The query for the reports of ``duration`` time precisions, the first of which is ``time``."""
    return Query.interval(time * PRECISION, duration * PRECISION)


@dataclass
class TaskHarness:
    """One task of a running pair, whose Client and Leader the test plays."""

    task: PairTask
    http: DapHttp

    def __post_init__(self) -> None:
        self.pair = self.task.pair
        self.id_text = b64url_encode(self.task.task_id)
        configuration = self.task.files.client.configuration
        self.client = CraftingClient(
            make_vdaf(configuration.vdaf),
            self.task.task_id,
            configuration.encode(),
            _config(self.pair.leader),
            _config(self.pair.helper),
        )

    def seal(
        self,
        measurements: Sequence[Measurement],
        label: str,
        *,
        at: int = TIME,
        public: Extensions = (),
        leader: Extensions = (),
        helper: Extensions = (),
        spoil: Spoil | None = None,
        unknown: Sequence[str] = (),
    ) -> list[bytes]:
        """Encoded ``Report``s with ids ``make_ids(.., label)``.

        They are sealed to an HPKE config id that the sides in ``unknown`` don't have.
        """
        ids = make_ids(len(measurements), label)
        client = self.client
        if "leader" in unknown:
            client = replace(client, leader=_with_another_id(client.leader))
        if "helper" in unknown:
            client = replace(client, helper=_with_another_id(client.helper))
        return client.seal(
            measurements,
            ids,
            [at] * len(measurements),
            public=public,
            leader=leader,
            helper=helper,
            spoil=spoil,
        )

    async def upload(self, reports: Sequence[bytes]) -> list[tuple[bytes, int]]:
        """Send reports as they are; the Leader's (report id, ReportError) of those it rejects."""
        url = resource_url(self.pair.leader.url, "tasks", self.id_text, "reports")
        outcome = await self.http.upload(url, b"".join(reports))
        assert isinstance(outcome, Ready), outcome
        return parse_upload_errors(outcome.body)

    def start_job(self, reports: Sequence[bytes], batch_id: bytes = b"") -> CraftedJob:
        """A job over reports that the pair's Leader has not seen, and does not judge but by
        opening them all.
        """
        leader = self.pair.leader.context
        task = aggregator_task(self.task.files.leader, TaskSettings())
        group = open_uploads(
            [(task.parameters, ANY_TIME, b"".join(reports))],
            leader.keyrings.keyring,
            leader.sealer,
        )
        chunks = [
            chunk[3:] for part in group.parts for chunk in part.chunks(bytes(part.count), 1000)
        ]
        ids = split_ids(b"".join(column for column, _, _ in chunks))
        assert len(ids) == len(reports), "this Leader opens all"
        started = leader_start(task.parameters, ANY_TIME, leader.sealer, _JOB, chunks)
        return CraftedJob(self, task, started, batch_id, ids)

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
class CraftedJob:
    """An aggregation job that the test sends itself; ``ids`` are in the order of its columns."""

    harness: TaskHarness
    task: Task
    started: LeaderStart
    batch_id: bytes
    ids: list[bytes]

    @property
    def request(self) -> bytes:
        """The ``AggregationJobInitReq``."""
        return aggregation_job_init_req(0, self.batch_id, self.started.verify_inits)

    async def send(self, body: bytes | None = None) -> Outcome:
        """POST it, or another body, to the Helper once."""
        url = resource_url(
            self.harness.pair.helper.url, "tasks", self.harness.id_text, "aggregation_jobs"
        )
        return await self.harness.http.create(
            url, body or self.request, MediaType.AGGREGATION_JOB_INIT_REQ, self.token
        )

    async def run(self) -> LeaderFinish:
        """POST it, poll it to its end, and take the Helper's response as a Leader does."""
        outcome = await self.send()
        while isinstance(outcome, Processing):
            outcome = await self.harness.http.poll(
                outcome.location, self.token, MediaType.AGGREGATION_JOB_RESP, step=0
            )
        assert isinstance(outcome, Ready), outcome
        return self.finish(outcome.body)

    def finish(self, response: bytes) -> LeaderFinish:
        return leader_finish(
            self.task.parameters,
            self.harness.pair.leader.context.sealer,
            _JOB,
            self.batch_id or None,
            self.started.state,
            response,
        )

    @property
    def token(self) -> str:
        return self.harness.task.files.leader.aggregator_auth_token


async def until(condition: Callable[[], Awaitable[bool]]) -> None:
    """Ask again and again until the condition holds; the test's deadline ends it otherwise."""
    while not await condition():  # noqa: ASYNC110 - a database notifies no reader
        await trio.sleep(0.005)


async def until_down(context: Context, peer: str) -> None:
    """Wait until an exchange with the peer at this URL has failed."""

    async def failing() -> bool:
        return context.peers.at(peer).failures > 0

    await until(failing)


def _config(side: Aggregator) -> HpkeConfigTuple:
    return HpkeConfigList.decode(side.context.keyrings.published).configs[0].as_tuple


def _with_another_id(config: HpkeConfigTuple) -> HpkeConfigTuple:
    return (config[0] ^ 0x80, *config[1:])
