"""Collection jobs as a Collector sees them: over a real socket, with routing and tokens."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import msgspec
import pytest
import trio

from dapd.commits.collections import (
    finish_collection,
    give_up_collection,
    refuse_collection,
)
from dapd.datastore import collections
from dapd.datastore.collections import CollectionJob
from dapd.datastore.leases import Lease
from dapd.http import DapHttp, Outcome, Processing, Ready, Refused
from dapd.messages.collection import CollectionJobReq, Query
from dapd.messages.common import BatchMode, Interval, MediaType, b64url_decode, b64url_encode
from dapd.protocol.task import Mark
from dapd.runtime.context import Context
from dapd.server import quart_app
from dapd.server.front import front
from dapd.server.listener import Server
from dapd.server.sockets import listening
from tests.clock import TIME
from tests.database_pair import NEXT_BATCH, QUERY, DatabasePair, leader_context, open_databases
from tests.task_pair import COLLECTOR_TOKEN


@dataclass
class Served:
    """A Leader's HTTP server without its loops, and a Collector's client."""

    databases: DatabasePair
    context: Context
    http: DapHttp
    url: str

    @property
    def creation(self) -> str:
        return f"{self.url}/any/prefix/tasks/{self.databases.leader.id_text}/collection_jobs"

    def at(self, location: str) -> str:
        """A Location behind a proxy that strips the task's own prefix."""
        return f"{self.creation}/{location.rpartition('/')[2]}"

    async def post(self, request: CollectionJobReq = QUERY) -> Outcome:
        return await self.http.create(
            self.creation, request.encode(), MediaType.COLLECTION_JOB_REQ, COLLECTOR_TOKEN
        )

    async def get(self, location: str) -> Outcome:
        return await self.http.poll(
            self.at(location), COLLECTOR_TOKEN, MediaType.COLLECTION_JOB_RESP
        )

    async def started(self, request: CollectionJobReq = QUERY) -> str:
        """Start a job that is not ready; return its Location."""
        outcome = await self.post(request)
        assert isinstance(outcome, Processing), outcome
        return outcome.location

    def job(self, location: str) -> CollectionJob:
        """The job at a Location, as the database has it."""
        job_id = b64url_decode(location.rpartition("/")[2])
        task_pk = self.databases.leader.task_pk
        job = self.databases.store.read_sync(collections.by_id, task_pk, job_id, Mark(0, 0))
        assert job is not None
        return job

    def lease(self, location: str) -> Lease:
        return self.databases.lease(self.job(location))


@asynccontextmanager
async def served(
    path: Path, *, mode: BatchMode = BatchMode.TIME_INTERVAL, hold: float = 0.0
) -> AsyncIterator[Served]:
    async with (
        open_databases(path, mode=mode) as databases,
        leader_context(databases) as context,
        DapHttp(timeout=60) as http,
        listening(("127.0.0.1", 0), "server") as listeners,
        trio.open_nursery() as nursery,
    ):
        config = context.config
        context.config = msgspec.structs.replace(
            config, collection=msgspec.structs.replace(config.collection, poll_hold=hold)
        )
        app = front(context, quart_app.build(context))  # type: ignore[arg-type]
        nursery.start_soon(Server(app, listeners, lambda: 30, context.clock).run)
        port = listeners[0].socket.getsockname()[1]
        yield Served(databases, context, http, f"http://127.0.0.1:{port}")
        nursery.cancel_scope.cancel()


async def test_a4_not_ready_is_empty_with_location_and_retry_after(tmp_path: Path) -> None:
    """POST, its repeat and GET are alike; the Location is below the task's own endpoint."""
    async with served(tmp_path) as it:
        first = await it.post()
        assert isinstance(first, Processing)
        assert first.retry_after == 0
        path = f"/leader/tasks/{it.databases.leader.id_text}/collection_jobs/"
        assert first.location.startswith(it.url + path)
        assert await it.post() == first  # A1
        assert await it.get(first.location) == first


async def test_a4_a_result_answers_post_and_get(tmp_path: Path) -> None:
    """Both get the same bytes, and POST the Location."""
    async with served(tmp_path) as it:
        location = await it.started()
        assert it.databases.store.run_sync(finish_collection, it.lease(location), b"result")
        assert await it.get(location) == Ready(b"result")
        assert await it.post() == Ready(b"result", location)


async def test_a4_a_failed_job_answers_get_with_its_problem_document(tmp_path: Path) -> None:
    """The same query then creates a new job."""
    async with served(tmp_path) as it:
        location = await it.started()
        lease = it.lease(location)
        assert it.databases.store.run_sync(
            refuse_collection, lease, it.databases.leader, "batchMismatch", "they differ"
        )
        assert await it.get(location) == Refused(400, "batchMismatch", "they differ")
        assert await it.started() != location


@pytest.mark.parametrize(
    ("named", "told"),
    [("unrecognizedTask", "unrecognizedTask"), ("ownError", None), (None, None)],
)
async def test_a10_a_job_that_was_given_up_answers_with_an_error_of_the_draft_or_none(
    tmp_path: Path, named: str | None, told: str | None
) -> None:
    """Whatever the Helper has called it; the detail says what that was."""
    async with served(tmp_path) as it:
        location = await it.started()
        lease = it.lease(location)
        at = it.databases.clock.instant()
        failure = named, "the Helper said so"
        assert it.databases.store.run_sync(
            give_up_collection, lease, it.databases.leader, failure, at
        )
        assert await it.get(location) == Refused(400, told, "the Helper said so")


async def test_a6_a_deleted_job_is_gone(tmp_path: Path) -> None:
    """DELETE answers 200, also the second time; for a job that never existed, 404."""
    async with served(tmp_path) as it:
        location = await it.started()
        for _ in range(2):
            assert await it.http.delete(it.at(location), COLLECTOR_TOKEN) == Ready(b"")
        for resource in (location, b64url_encode(bytes(16)), "short", "!"):
            gone = await it.get(resource)
            assert isinstance(gone, Refused)
            assert (gone.status, gone.type) == (404, None)
        never = await it.http.delete(it.at(b64url_encode(bytes(16))), COLLECTOR_TOKEN)
        assert isinstance(never, Refused)
        assert never.status == 404


async def test_a8_serving_a_result_is_noted_once(tmp_path: Path) -> None:
    """From then on the identity of a leader-selected job lasts for a configured time."""
    async with served(tmp_path, mode=BatchMode.LEADER_SELECTED) as it:
        location = await it.started(NEXT_BATCH)
        it.databases.store.run_sync(finish_collection, it.lease(location), b"result")
        assert it.job(location).served_at is None
        it.databases.clock.advance(1)
        assert await it.post(NEXT_BATCH) == Ready(b"result", location)
        served_at = it.databases.clock.now()
        it.databases.clock.advance(1)
        assert await it.get(location) == Ready(b"result")
        assert it.job(location).served_at == served_at
        it.databases.clock.advance(3600)
        assert await it.started(NEXT_BATCH) != location
        assert await it.get(location) == Ready(b"result")


async def test_a9_a10_a_collection_needs_its_token_and_its_media_type(tmp_path: Path) -> None:
    """Without them the Collector gets 401 or 415 before anything is stored."""
    async with served(tmp_path) as it:
        stranger = await it.http.create(
            it.creation, QUERY.encode(), MediaType.COLLECTION_JOB_REQ, "wrong"
        )
        assert isinstance(stranger, Refused)
        assert stranger.status == 401
        other = await it.http.create(
            it.creation, QUERY.encode(), MediaType.AGGREGATE_SHARE_REQ, COLLECTOR_TOKEN
        )
        assert isinstance(other, Refused)
        assert other.status == 415


async def test_c4_a_refused_query_is_a_problem_document(tmp_path: Path) -> None:
    """Its type is the draft's."""
    async with served(tmp_path) as it:
        refused = await it.post(CollectionJobReq(Query(Interval(TIME, 0))))
        assert isinstance(refused, Refused)
        assert (refused.status, refused.type) == (400, "batchInvalid")
        wrong = await it.post(NEXT_BATCH)
        assert isinstance(wrong, Refused)
        assert wrong.type == "invalidMessage"


async def test_a_held_request_is_answered_the_moment_the_result_is_there(tmp_path: Path) -> None:
    """The Collector need not wait for its next poll."""
    async with served(tmp_path, hold=3600) as it:
        answers: list[Outcome] = []

        async def collect() -> None:
            answers.append(await it.post())

        with trio.fail_after(60):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(collect)
                await it.context.jobs.wait(60)  # the job is made
                job = it.databases.query(QUERY)
                it.databases.store.run_sync(finish_collection, it.databases.lease(job), b"result")
                it.context.finished.announce(("collection", job.id))
        assert [type(each) for each in answers] == [Ready]


async def test_i8_draining_answers_held_requests_not_ready(tmp_path: Path) -> None:
    """They are answered at once, so that the daemon can stop."""
    async with served(tmp_path, hold=3600) as it:
        answers: list[Outcome] = []

        async def collect() -> None:
            answers.append(await it.post())

        with trio.fail_after(60):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(collect)
                await it.context.jobs.wait(60)
                it.context.drain()
        assert [type(each) for each in answers] == [Processing]
