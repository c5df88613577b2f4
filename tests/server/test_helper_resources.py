"""The Helper's resources as a Leader sees them: the whole ASGI application on a real database."""

from __future__ import annotations

import hashlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, cast

import httpx2
import pytest
import trio

from dapd import config
from dapd.datastore import leases
from dapd.driver.helper_job import run
from dapd.driver.step import Step
from dapd.messages.aggregation import AggregationJobContinueHead
from dapd.messages.collection import AggregateShareReq, BatchSelector, CollectionJobReq, Query
from dapd.messages.common import Interval, MediaType, b64url_encode
from dapd.runtime.context import Context
from dapd.server.front import front
from dapd.server.quart_app import build
from tests.clock import TIME
from tests.contexts import make_config, open_context
from tests.task_pair import (
    AGGREGATOR_TOKEN,
    TaskPair,
    leader_job,
    make_reports,
    report_ids,
    task_pair,
)

INIT, CONTINUE = MediaType.AGGREGATION_JOB_INIT_REQ, MediaType.AGGREGATION_JOB_CONTINUE_REQ
URN = "urn:ietf:params:ppm:dap:error:"


@pytest.fixture(scope="module")
def pair() -> TaskPair:
    return task_pair()


def reading_all(app: Any) -> Any:
    """Read what ``app`` leaves unread; else the garbage collector ends httpx2's body generator."""

    async def read_all(scope: Any, receive: Any, send: Any) -> None:
        more = True

        async def read() -> Any:
            nonlocal more
            event = await receive()
            more = event.get("more_body", False)
            return event

        await app(scope, read, send)
        while more:
            await read()

    return read_all


class Peer:
    """The Leader's side of the exchange, without a socket."""

    def __init__(self, pair: TaskPair, context: Context) -> None:
        app = front(context, cast("Any", build(context)))
        self.context = context
        self.tasks = f"/helper/tasks/{b64url_encode(pair.helper.task_id)}"
        self.http = httpx2.AsyncClient(
            transport=httpx2.ASGITransport(app=reading_all(cast("Any", app))),
            base_url="http://helper",
            headers={"Authorization": f"Bearer {AGGREGATOR_TOKEN}"},
        )

    async def post(self, path: str, body: bytes, message: MediaType = INIT) -> httpx2.Response:
        url = path if path.startswith("/") else f"{self.tasks}/{path}"
        return await self.http.post(url, content=body, headers={"Content-Type": message.value})

    async def drive(self) -> None:
        """Run the due jobs, as the dispatcher would."""
        leased, _ = await self.context.run(leases.lease_due, self.context.now(), list)
        for lease in leased:
            task = self.context.tasks.by_pk(lease.due.task_pk)
            peer = self.context.peers.at("")
            await run(self.context, Step(lease, task, trio.CapacityLimiter(1), peer))


@asynccontextmanager
async def serving(directory: Path, pair: TaskPair, **settings: Any) -> AsyncIterator[Peer]:
    configured = make_config(directory, helper=config.Helper(**settings))
    async with open_context(configured, (pair.helper, pair)) as context:
        peer = Peer(pair, context)
        async with peer.http:
            yield peer


def error_of(response: httpx2.Response) -> str | None:
    assert response.headers["Content-Type"] == "application/problem+json"
    document = response.json()
    assert response.status_code == document["status"]
    return str(document["type"]).removeprefix(URN)


async def test_a_sync_job_is_answered_with_its_representation(
    tmp_path: Path, pair: TaskPair
) -> None:
    """POST, repeated POST and GET get the same; the Location of a ready job has no step (A4)."""
    async with serving(tmp_path, pair, mode="sync") as peer:
        job = leader_job(pair, make_reports(pair, [1, 0]))
        first = await peer.post("aggregation_jobs", job.body)
        assert first.headers["Content-Type"] == MediaType.AGGREGATION_JOB_RESP.value
        assert job.finish(first.content) == bytes(2)
        location = first.headers["Location"]
        assert location.startswith(f"{peer.tasks}/aggregation_jobs/")
        assert "step" not in location
        again = await peer.post("aggregation_jobs", job.body)
        assert (again.content, again.headers["Location"]) == (first.content, location)
        got = await peer.http.get(location, params={"step": "0"})
        assert got.content == first.content


async def test_a4_not_ready_answers_post_and_get_alike(tmp_path: Path, pair: TaskPair) -> None:
    """Both get 200, empty, with ``?step=0`` in the Location and Retry-After; later the
    representation.
    """
    async with serving(tmp_path, pair, mode="async", poll_hold=0) as peer:
        job = leader_job(pair, make_reports(pair, [1, 0]))
        posted = await peer.post("aggregation_jobs", job.body)
        location = posted.headers["Location"]
        repeated = await peer.post("aggregation_jobs", job.body)
        polled = await peer.http.get(location)
        for response in (posted, repeated, polled):
            assert (response.status_code, response.content) == (200, b"")
            assert response.headers["Location"] == location
            assert location.endswith("?step=0")
            assert response.headers["Retry-After"].isdecimal()
        await peer.drive()
        assert job.finish((await peer.http.get(location)).content) == bytes(2)


async def test_a_malformed_request_is_an_invalid_message(tmp_path: Path, pair: TaskPair) -> None:
    """The problem document has the task's id; nothing is stored."""
    async with serving(tmp_path, pair, mode="async") as peer:
        body = leader_job(pair, make_reports(pair, [1])).body
        response = await peer.post("aggregation_jobs", body[:-1])
        assert error_of(response) == "invalidMessage"
        assert response.json()["taskid"] == b64url_encode(pair.helper.task_id)
        assert (await peer.context.run(leases.lease_due, peer.context.now(), list))[0] == []


async def test_another_content_type_is_415(tmp_path: Path, pair: TaskPair) -> None:
    async with serving(tmp_path, pair) as peer:
        body = leader_job(pair, make_reports(pair, [1])).body
        response = await peer.post("aggregation_jobs", body, CONTINUE)
        assert (response.status_code, error_of(response)) == (415, "about:blank")


async def test_a9_every_method_needs_the_token(tmp_path: Path, pair: TaskPair) -> None:
    async with serving(tmp_path, pair) as peer:
        job = f"{peer.tasks}/aggregation_jobs/{b64url_encode(bytes(16))}"
        share = f"{peer.tasks}/aggregate_shares/{b64url_encode(bytes(16))}"
        collections = (f"{peer.tasks}/aggregation_jobs", f"{peer.tasks}/aggregate_shares")
        requests = [("POST", url) for url in (*collections, job)]
        requests += [(method, url) for method in ("GET", "DELETE") for url in (job, share)]
        for method, url in requests:
            response = await peer.http.request(method, url, headers={"Authorization": "Bearer x"})
            assert response.status_code == 401
            assert "WWW-Authenticate" in response.headers


async def test_a11_a_continuation_is_never_in_step(tmp_path: Path, pair: TaskPair) -> None:
    """The checks are in this order: unknown job, malformed message, wrong step."""
    async with serving(tmp_path, pair, mode="sync") as peer:
        body = leader_job(pair, make_reports(pair, [1])).body
        location = (await peer.post("aggregation_jobs", body)).headers["Location"]
        valid, zero = (AggregationJobContinueHead(number).encode() for number in (1, 0))
        unknown = f"aggregation_jobs/{b64url_encode(bytes(16))}"
        assert error_of(await peer.post(unknown, b"", CONTINUE)) == "unrecognizedAggregationJob"
        assert error_of(await peer.post(location, b"", CONTINUE)) == "invalidMessage"
        assert error_of(await peer.post(location, zero, CONTINUE)) == "invalidMessage"
        reports = valid + report_ids(1) + b"\0\0\0\1\0"
        assert error_of(await peer.post(location, reports, CONTINUE)) == "invalidMessage"
        assert error_of(await peer.post(location, valid, CONTINUE)) == "stepMismatch"


async def test_a6_a_deleted_job_is_unrecognized(tmp_path: Path, pair: TaskPair) -> None:
    """Every method says so, also GET without a step: without a job there is no step to compare."""
    async with serving(tmp_path, pair, mode="sync") as peer:
        body = leader_job(pair, make_reports(pair, [1])).body
        location = (await peer.post("aggregation_jobs", body)).headers["Location"]
        assert error_of(await peer.http.get(location)) == "invalidMessage"
        assert error_of(await peer.http.get(f"{location}?step=1")) == "stepMismatch"
        deleted = await peer.http.delete(location)
        assert (deleted.status_code, deleted.content) == (200, b"")
        later = [
            await peer.http.get(f"{location}?step=0"),
            await peer.http.get(location),
            await peer.http.delete(location),
            await peer.http.get(f"{peer.tasks}/aggregation_jobs/nonsense?step=0"),
        ]
        assert {error_of(response) for response in later} == {"unrecognizedAggregationJob"}


async def test_an_aggregate_share_is_served_at_once_and_again(
    tmp_path: Path, pair: TaskPair
) -> None:
    """POST, repeated POST and GET get the same bytes; after DELETE the batch stays collected."""
    async with serving(tmp_path, pair, mode="sync") as peer:
        ids = report_ids(1)
        body = leader_job(pair, make_reports(pair, [1], ids=ids)).body
        await peer.post("aggregation_jobs", body)
        interval = Interval(TIME, 1)
        request = AggregateShareReq(
            CollectionJobReq(Query(interval)),
            BatchSelector(interval),
            1,
            hashlib.sha256(ids).digest(),
        ).encode()
        first = await peer.post("aggregate_shares", request, MediaType.AGGREGATE_SHARE_REQ)
        assert first.headers["Content-Type"] == MediaType.AGGREGATE_SHARE.value
        location = first.headers["Location"]
        again = await peer.post("aggregate_shares", request, MediaType.AGGREGATE_SHARE_REQ)
        assert (again.content, again.headers["Location"]) == (first.content, location)
        assert (await peer.http.get(f"{location}?step=9")).content == first.content
        assert (await peer.http.delete(location)).status_code == 200
        for gone in (await peer.http.get(location), await peer.http.delete(location)):
            assert (gone.status_code, error_of(gone)) == (404, "about:blank")
        refused = await peer.post("aggregate_shares", request, MediaType.AGGREGATE_SHARE_REQ)
        assert error_of(refused) == "batchOverlap"


async def test_a_malformed_share_request_is_an_invalid_message(
    tmp_path: Path, pair: TaskPair
) -> None:
    async with serving(tmp_path, pair) as peer:
        response = await peer.post("aggregate_shares", b"\1", MediaType.AGGREGATE_SHARE_REQ)
        assert error_of(response) == "invalidMessage"
