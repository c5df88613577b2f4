"""Both roles' resources on real sockets, as a peer of another make meets them.

Sections "HTTP Usage", "Errors" and the appendix "HTTP Resources Reference"; rules A1, A4, A6, A9,
A10, A11.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import trio

from dapd.messages.aggregation import AggregationJobContinueHead
from dapd.messages.collection import CollectionJobReq, Query
from dapd.messages.common import HpkeConfigList, Interval, MediaType
from dapd.reports import ReportError
from dapd.testing import Pair
from dapd.testing.pair import Aggregator
from tests.clock import TIME
from tests.pair_harness import TaskHarness, open_pair, query_at
from tests.raw_http import Reply, ask, exchange, parse, read_all, request

LIMIT = 8192
SMALL: dict[str, dict[str, Any]] = {
    "server": {"max_body_bytes": LIMIT},
    "collection": {"poll_hold": 0.0},
}
INIT, CONTINUE = MediaType.AGGREGATION_JOB_INIT_REQ, MediaType.AGGREGATION_JOB_CONTINUE_REQ
SHARE, COLLECT = MediaType.AGGREGATE_SHARE_REQ, MediaType.COLLECTION_JOB_REQ
CREATIONS = {
    "reports": MediaType.UPLOAD_REQ,
    "aggregation_jobs": INIT,
    "aggregate_shares": SHARE,
    "collection_jobs": COLLECT,
}
BY_LEADER = ("reports", "collection_jobs")
UNKNOWN_ID = "AAAAAAAAAAAAAAAAAAAAAA"


@dataclass(frozen=True)
class Surface:
    """A running pair, a task, and the means to ask either Aggregator anything."""

    pair: Pair
    harness: TaskHarness

    def side(self, resource: str) -> Aggregator:
        return self.pair.leader if resource in BY_LEADER else self.pair.helper

    def token(self, resource: str) -> str:
        files = self.harness.task.files
        if resource == "collection_jobs":
            return files.collector.collector_auth_token
        return files.leader.aggregator_auth_token

    def headers(self, resource: str, content: str | None = None) -> dict[str, str]:
        chosen = {"Authorization": f"Bearer {self.token(resource)}"}
        return chosen if content is None else chosen | {"Content-Type": content}

    def path(self, resource: str, name: str | None = None) -> str:
        tail = "" if name is None else f"/{name}"
        return f"/tasks/{self.harness.id_text}/{resource}{tail}"

    async def ask(
        self, method: str, path: str, content: MediaType | None = None, body: bytes = b""
    ) -> Reply:
        """With the right token, at the right Aggregator."""
        resource = next(each for each in CREATIONS if f"/{each}" in path)
        headers = self.headers(resource, content)
        return await ask(self.side(resource).port, method, path, headers, body)

    async def create(self, resource: str, body: bytes) -> Reply:
        return await self.ask("POST", self.path(resource), CREATIONS[resource], body)


@asynccontextmanager
async def surface(directory: Path, mode: str = "sync") -> AsyncIterator[Surface]:
    helper: dict[str, dict[str, Any]] = {"helper": {"mode": mode}, **SMALL}
    async with open_pair(directory, leader=SMALL, helper=helper) as (pair, http):
        yield Surface(pair, TaskHarness(await pair.new_task("count"), http))


async def test_hpke_config_is_open_and_may_be_cached(tmp_path: Path) -> None:
    """Section "HPKE Configuration Request": both roles, no task and no token needed (A9)."""
    async with surface(tmp_path) as s:
        for side in (s.pair.leader, s.pair.helper):
            reply = await ask(side.port, "GET", "/hpke_config")
            assert reply.status == 200
            assert reply.headers["content-type"] == MediaType.HPKE_CONFIG_LIST.value
            assert reply.headers["cache-control"] == "max-age=86400"
            [config] = HpkeConfigList.decode(reply.body).configs
            suite = config.kem_id, config.kdf_id, config.aead_id
            assert suite == (0x0020, 0x0001, 0x0001), "that of section Compliance Requirements"


async def test_routes_match_under_any_prefix(tmp_path: Path) -> None:
    """Behind a proxy that strips a prefix or doesn't; the Location is the task's endpoint's."""
    async with surface(tmp_path) as s:
        for prefix in ("/dap", "/a/b.c/tasks"):
            configs = await ask(s.pair.leader.port, "GET", f"{prefix}/hpke_config")
            assert configs.status == 200
            job = s.harness.start_job(s.harness.seal([1], f"below {prefix}"))
            reply = await s.ask("POST", prefix + s.path("aggregation_jobs"), INIT, job.request)
            assert reply.status == 200
            assert reply.headers["location"].startswith(s.path("aggregation_jobs") + "/")
            path = f"{prefix}{reply.headers['location']}?step=0"
            assert (await s.ask("GET", path)).body == reply.body


async def test_b7_endpoints_with_a_path_work_from_end_to_end(tmp_path: Path) -> None:
    """With and without a slash at the end; Location carries the endpoint's path (B7)."""
    async with open_pair(tmp_path) as (pair, http):
        task = await pair.new_task(
            leader_aggregator_endpoint=f"{pair.leader.url}dap/leader",
            helper_aggregator_endpoint=f"{pair.helper.url}dap/helper/",
        )
        harness = TaskHarness(task, http)
        assert (await task.upload([1, 1, 0])).accepted == 3
        result = await task.collect()
        assert (result.value, result.report_count) == (2, 3)
        headers = {
            "Authorization": f"Bearer {task.files.leader.aggregator_auth_token}",
            "Content-Type": INIT.value,
        }
        job = harness.start_job(harness.seal([1], "one more", at=TIME - 1))
        path = f"/tasks/{harness.id_text}/aggregation_jobs"
        reply = await ask(pair.helper.port, "POST", path, headers, job.request)
        assert reply.headers["location"].startswith(f"/dap/helper{path}/")


@pytest.mark.parametrize("resource", sorted(CREATIONS))
async def test_the_other_roles_routes_do_not_know_the_task(tmp_path: Path, resource: str) -> None:
    """``unrecognizedTask`` from the other Aggregator, and for tasks nobody has, with any token."""
    async with surface(tmp_path) as s:
        other = s.pair.helper if resource in BY_LEADER else s.pair.leader
        headers = s.headers(resource, CREATIONS[resource])
        for target, port in (
            (s.path(resource), other.port),
            (f"/tasks/{'A' * 43}/{resource}", s.side(resource).port),
            (f"/tasks/no+base64url/{resource}", s.side(resource).port),
        ):
            reply = await ask(port, "POST", target, headers, b"x")
            assert (reply.status, reply.error) == (404, "unrecognizedTask")
            assert reply.problem["taskid"] == target.split("/")[2]


@pytest.mark.parametrize("resource", sorted(CREATIONS))
async def test_a10_content_of_another_type_is_415(tmp_path: Path, resource: str) -> None:
    """Type and ``message`` must be right, other parameters and the case don't matter (A10)."""
    async with surface(tmp_path) as s:
        right = CREATIONS[resource]
        wrong = next(each for name, each in CREATIONS.items() if name != resource)
        for content in (None, "application/octet-stream", "application/ppm-dap", wrong.value):
            headers = s.headers(resource, content)
            reply = await ask(s.side(resource).port, "POST", s.path(resource), headers, b"\x00")
            assert (reply.status, reply.error) == (415, None)
        same = f'Application/PPM-DAP; version=18; message="{right.message}"'
        headers = s.headers(resource, same)
        reply = await ask(s.side(resource).port, "POST", s.path(resource), headers, b"\x00")
        assert (reply.status, reply.error) == (400, "invalidMessage")


@pytest.mark.parametrize("resource", sorted(CREATIONS))
async def test_a10_problem_documents_say_what_is_wrong(tmp_path: Path, resource: str) -> None:
    """RFC 9457: the DAP URN, a title, the status, a detail, and the task's id (A10)."""
    async with surface(tmp_path) as s:
        reply = await s.create(resource, b"\xff")
        problem = reply.problem
        assert problem["type"] == "urn:ietf:params:ppm:dap:error:invalidMessage"
        assert problem["title"] == "The message could not be parsed or was invalid."
        assert problem["status"] == reply.status == 400
        assert problem["taskid"] == s.harness.id_text
        assert "byte" in problem["detail"]


async def test_unknown_routes_are_404(tmp_path: Path) -> None:
    """``about:blank``, never a traceback, and no redirect to what they resemble."""
    async with surface(tmp_path) as s:
        for side in (s.pair.leader, s.pair.helper):
            for path in (
                "/",
                "/tasks",
                s.path("nothing"),
                f"/tasks/{s.harness.id_text}",
                "/hpke_config/more",
                "//",
                s.path("aggregation_jobs") + "//0",
                "/hpke_config/",
                "//hpke_config//",
                "/%00%ff",
                "/tasks/%2f/..",
            ):
                reply = await ask(side.port, "GET", path)
                assert (reply.status, reply.error) == (404, None), path
                assert "Traceback" not in reply.body.decode()


async def test_wrong_methods_are_405_and_say_which_are_right(tmp_path: Path) -> None:
    """RFC 9110, section 15.5.6: with Allow."""
    async with surface(tmp_path) as s:
        for method, path, allowed in (
            ("GET", s.path("reports"), {"POST"}),
            ("PUT", s.path("aggregation_jobs"), {"POST"}),
            ("PUT", s.path("aggregation_jobs", UNKNOWN_ID), {"GET", "POST", "DELETE"}),
            ("POST", s.path("aggregate_shares", UNKNOWN_ID), {"GET", "DELETE"}),
            ("PATCH", s.path("collection_jobs", UNKNOWN_ID), {"GET", "DELETE"}),
        ):
            reply = await s.ask(method, path)
            assert (reply.status, reply.error) == (405, None)
            found = {each.strip() for each in reply.headers["allow"].split(",")}
            assert found - {"HEAD", "OPTIONS"} == allowed
        assert (await ask(s.pair.leader.port, "PUT", "/hpke_config")).status == 405


@pytest.mark.parametrize("resource", sorted(CREATIONS))
async def test_a_body_that_is_too_large_is_413(tmp_path: Path, resource: str) -> None:
    """Whether its length is announced or not, and without its being read to the end."""
    async with surface(tmp_path) as s:
        headers = s.headers(resource, CREATIONS[resource])
        announced = request("POST", s.path(resource), headers | {"Content-Length": str(LIMIT + 1)})
        chunk = b"1000\r\n" + bytes(0x1000) + b"\r\n"
        head = request("POST", s.path(resource), headers | {"Transfer-Encoding": "chunked"})
        for sent in (announced, head.replace(b"Content-Length: 0\r\n", b"") + 3 * chunk):
            reply = parse(await exchange(s.side(resource).port, sent))
            assert (reply.status, reply.error) == (413, None)
            assert str(LIMIT) in reply.problem["detail"]


PROTECTED = [
    (method, resource, name)
    for resource in ("aggregation_jobs", "aggregate_shares", "collection_jobs")
    for method, name in (
        ("POST", None),
        ("GET", UNKNOWN_ID),
        ("DELETE", UNKNOWN_ID),
        ("POST", UNKNOWN_ID),
    )
]


async def test_a9_every_method_needs_the_tasks_token(tmp_path: Path) -> None:
    """401 with WWW-Authenticate for none, a wrong one, another party's, another scheme (A9)."""
    async with surface(tmp_path) as s:
        another = (await s.pair.new_task("count")).files.leader.aggregator_auth_token
        for method, resource, name in PROTECTED:
            token = s.token(resource)
            other = s.token("collection_jobs" if resource != "collection_jobs" else "aggregate")
            for headers in (
                {},
                {"Authorization": "Bearer "},
                {"Authorization": f"Bearer {token}x"},
                {"Authorization": f"Bearer {other}"},
                {"Authorization": f"Bearer {another}"},
                {"Authorization": f"Basic {token}"},
                {"Authorization": token},
                {"DAP-Auth-Token": other},
                {"DAP-Auth-Token": ""},
            ):
                reply = await ask(s.side(resource).port, method, s.path(resource, name), headers)
                assert (reply.status, reply.error) == (401, None)
                assert reply.headers["www-authenticate"].startswith("Bearer")
                assert reply.problem["taskid"] == s.harness.id_text


async def test_a9_both_ways_to_present_the_token_are_taken(tmp_path: Path) -> None:
    """``Authorization: Bearer``, its scheme in any case, and ``DAP-Auth-Token`` (A9)."""
    async with surface(tmp_path) as s:
        for method, resource, name in PROTECTED:
            token = s.token(resource)
            for headers in (
                {"Authorization": f"Bearer {token}"},
                {"authorization": f"bearer {token}"},
                {"DAP-Auth-Token": token},
            ):
                reply = await ask(s.side(resource).port, method, s.path(resource, name), headers)
                assert reply.status in (404, 405, 415), (method, resource, name)


@pytest.mark.parametrize("resource", ["aggregation_jobs", "aggregate_shares", "collection_jobs"])
async def test_a9_the_token_is_checked_before_the_body_is_read(
    tmp_path: Path, resource: str
) -> None:
    """The answer comes while the body is still to be sent (A9)."""
    async with surface(tmp_path) as s:
        headers = {"Content-Type": CREATIONS[resource].value, "Content-Length": "5000"}
        head = request("POST", s.path(resource), headers)
        reply = parse(await exchange(s.side(resource).port, head))
        assert reply.status == 401


async def test_a4_a_get_of_an_aggregation_job_names_its_step(tmp_path: Path) -> None:
    """None, no number: ``invalidMessage``; another than 0: ``stepMismatch`` (A4)."""
    async with surface(tmp_path) as s:
        job = s.harness.start_job(s.harness.seal([1, 0], "job"))
        made = await s.create("aggregation_jobs", job.request)
        location = made.headers["location"]
        assert "step" not in location
        for query, error in (
            ("", "invalidMessage"),
            ("?step=", "invalidMessage"),
            ("?step=one", "invalidMessage"),
            ("?step=-1", "invalidMessage"),
            ("?step=1", "stepMismatch"),
            ("?step=18446744073709551616", "stepMismatch"),
        ):
            reply = await s.ask("GET", location + query)
            assert (reply.status, reply.error) == (400, error), query
        assert (await s.ask("GET", f"{location}?step=0")).body == made.body
        unknown = await s.ask("GET", s.path("aggregation_jobs", UNKNOWN_ID) + "?step=0")
        assert (unknown.status, unknown.error) == (404, "unrecognizedAggregationJob")


async def test_a4_not_ready_is_200_and_empty_with_where_and_when(tmp_path: Path) -> None:
    """POST of an async job and of a collection job, and their GETs, alike (A4)."""
    async with surface(tmp_path, mode="async") as s:
        job = s.harness.start_job(s.harness.seal([1, 0], "job"))
        made = await s.create("aggregation_jobs", job.request)
        assert (made.status, made.body) == (200, b"")
        assert made.headers["location"].endswith("?step=0")
        assert made.headers["retry-after"].isdecimal()
        polled = await s.ask("GET", made.headers["location"])  # held until it is ready
        assert bytes(job.finish(polled.body).outcomes) == bytes(2)

        query = query_at().request(s.harness.task.files.client.configuration).encode()
        for asked in (query, query):
            waiting = await s.create("collection_jobs", asked)
            assert (waiting.status, waiting.body) == (200, b"")
            assert "step" not in waiting.headers["location"]
        again = await s.ask("GET", waiting.headers["location"])
        assert (again.status, again.body) == (200, b"")
        assert again.headers["location"] == waiting.headers["location"]
        assert again.headers["retry-after"].isdecimal()


async def test_a11_a_job_of_one_round_can_not_be_continued(tmp_path: Path) -> None:
    """Unknown task or job; undecodable, step 0, any report id; only then ``stepMismatch`` (A11)."""
    async with surface(tmp_path) as s:
        job = s.harness.start_job(s.harness.seal([1], "job"))
        path = (await s.create("aggregation_jobs", job.request)).headers["location"]
        valid = AggregationJobContinueHead(1).encode()
        for target, body, error in (
            (path.replace(s.harness.id_text, "A" * 43), valid, "unrecognizedTask"),
            (s.path("aggregation_jobs", UNKNOWN_ID), valid, "unrecognizedAggregationJob"),
            (path, b"", "invalidMessage"),
            (path, AggregationJobContinueHead(0).encode(), "invalidMessage"),
            (path, valid + bytes(16) + b"\0\0\0\1x", "invalidMessage"),
            (path, valid, "stepMismatch"),
        ):
            reply = await s.ask("POST", target, CONTINUE, body)
            assert reply.error == error
        assert (await s.ask("GET", f"{path}?step=0")).status == 200, "and it is as it was"


async def test_a6_deleted_resources_are_gone_and_what_they_did_is_not(tmp_path: Path) -> None:
    """A6: an aggregation job's ids stay replays, an aggregate share's batch stays collected."""
    async with surface(tmp_path) as s:
        job = s.harness.start_job(s.harness.seal([1, 1], "job"))
        location = (await s.create("aggregation_jobs", job.request)).headers["location"]
        assert (await s.ask("DELETE", location)).status == 200
        for method, path in (("GET", f"{location}?step=0"), ("DELETE", location)):
            assert (await s.ask(method, path)).error == "unrecognizedAggregationJob"
        assert set((await job.run()).outcomes) == {2}, "a new job of reports that are replayed"

        result = await collected(s)
        assert result.status == 200
        path = result.headers["location"]
        assert (await s.ask("GET", path)).body == result.body
        assert (await s.ask("DELETE", path)).status == 200
        gone = await s.ask("GET", path)
        assert (gone.status, gone.error) == (404, None)
        assert (await s.ask("DELETE", path)).status == 200, "DELETE may be repeated"
        late = s.harness.seal([1], "late", at=TIME - 1)
        assert [error for _, error in await s.harness.upload(late)] == [ReportError.BATCH_COLLECTED]


async def collected(s: Surface) -> Reply:
    """The answer to a collection of two reports of the hour before noon and of noon's own."""
    await s.harness.upload(s.harness.seal([1, 1], "to collect", at=TIME - 1))
    await s.harness.until_counted(s.pair.leader, "aggregate_finished", 2)
    query = CollectionJobReq(Query(Interval(TIME - 1, 1))).encode()
    await s.create("collection_jobs", query)
    while not (reply := await s.create("collection_jobs", query)).body:
        await trio.lowlevel.checkpoint()
    return reply


@pytest.mark.parametrize("mode", ["sync", "async"])
async def test_a1_identical_posts_are_one_resource(tmp_path: Path, mode: str) -> None:
    """At once and later: the same Location, the same answer, aggregated once (A1, A2)."""
    async with surface(tmp_path, mode=mode) as s:
        job = s.harness.start_job(s.harness.seal([1, 1, 0], "job"))
        replies: list[Reply] = []

        async def post() -> None:
            replies.append(await s.create("aggregation_jobs", job.request))

        async with trio.open_nursery() as nursery:
            for _ in range(5):
                nursery.start_soon(post)
        await job.run()
        await post()
        locations = {r.headers["location"].removesuffix("?step=0") for r in replies}
        assert len(locations) == 1
        assert len({r.body for r in replies if r.body}) == 1
        assert (await s.harness.counters(s.pair.helper)) == {"aggregate_finished": 3}


HOSTILE = {
    "websocket with trailing bytes": (
        b"GET / HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
        b"Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\nSec-WebSocket-Version: 13\r\n\r\ntrailing"
    ),
    "websocket to a resource": (
        b"GET /hpke_config HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
        b"Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\nSec-WebSocket-Version: 13\r\n\r\n"
    ),
    "h2c upgrade": (
        b"GET /hpke_config HTTP/1.1\r\nHost: x\r\nConnection: Upgrade, HTTP2-Settings\r\n"
        b"Upgrade: h2c\r\nHTTP2-Settings: AAMAAABkAAQAAP__\r\n\r\ngarbage that is no preface"
    ),
    "HTTP/2 with garbage": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes(range(256)),
    "no HTTP": bytes(range(256)) * 4,
    "TLS": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(64),
    "endless header": b"GET / HTTP/1.1\r\nX: " + b"x" * 100_000,
    "two lengths": (
        b"POST /hpke_config HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nab"
    ),
    "bad chunk": (
        b"POST /hpke_config HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n\r\n"
    ),
    "half a head": b"GET /hpke_conf",
    "no host": b"GET /hpke_config HTTP/1.1\r\n\r\n",
    "nothing": b"",
}


@pytest.mark.parametrize("name", sorted(HOSTILE))
async def test_what_is_no_request_hurts_its_own_connection_alone(tmp_path: Path, name: str) -> None:
    """hypercorn's #225 among them: other connections, open before or after, go on."""
    async with surface(tmp_path) as s:
        port = s.pair.leader.port
        async with await trio.open_tcp_stream("127.0.0.1", port) as before:
            async with await trio.open_tcp_stream("127.0.0.1", port) as bad:
                await bad.send_all(HOSTILE[name])
                await bad.send_eof()
                assert b"Traceback" not in await read_all(bad)
            await before.send_all(request("GET", "/hpke_config"))
            assert parse(await read_all(before)).status == 200
        assert (await ask(port, "GET", "/hpke_config")).status == 200


async def test_half_an_upload_is_no_upload(tmp_path: Path) -> None:
    """I2: a client that goes in the middle of its body has stored nothing, and may try again."""
    async with surface(tmp_path) as s:
        body = b"".join(s.harness.seal([1, 1], "halved"))
        headers = {"Content-Type": MediaType.UPLOAD_REQ.value}
        whole = request("POST", s.path("reports"), headers, body)
        for size in (len(whole) - 1, len(whole) - len(body) // 2, len(whole) - len(body)):
            answer = await exchange_half(s.pair.leader.port, whole[:size])
            assert not answer.startswith(b"HTTP/1.1 2")
        assert await s.harness.counters(s.pair.leader) == {}
        assert parse(await exchange(s.pair.leader.port, whole)).body == b""
        assert (await s.harness.counters(s.pair.leader))["upload_accepted"] == 2


async def exchange_half(port: int, sent: bytes) -> bytes:
    """What comes back where the sender closes its half in the middle."""
    async with await trio.open_tcp_stream("127.0.0.1", port) as stream:
        await stream.send_all(sent)
        await stream.send_eof()
        return await read_all(stream)


async def test_one_connection_carries_many_requests(tmp_path: Path) -> None:
    """Keep-alive, also after an error and after an upload, and requests sent ahead of answers."""
    async with surface(tmp_path) as s:
        paths = ["/hpke_config", "/nothing", s.path("reports"), s.path("collection_jobs")] * 3
        kept = b"".join(
            request("GET", path, {"Connection": "keep-alive"}) for path in paths
        ) + request("GET", "/hpke_config")
        received = await exchange(s.pair.leader.port, kept)
        statuses = [int(part[:3]) for part in received.split(b"HTTP/1.1 ")[1:]]
        assert statuses == [200, 404, 405, 401] * 3 + [200]
