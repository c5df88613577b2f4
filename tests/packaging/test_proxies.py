"""Behind nginx and Caddy, with the files that operators are given: real proxies, real TLS."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx2
import msgspec
import pytest
import trio

from dapd.client import Client
from dapd.collector import Collector
from dapd.config import Collection, Helper, Leader, Server
from dapd.http import DapHttp, Ready, resource_url, trusting
from dapd.messages.aggregation import aggregation_job_init_req
from dapd.messages.common import MediaType, b64url_encode
from dapd.reports import split_ids
from dapd.testing import Pair
from tests.certificates import Authority
from tests.packaging.proxies import NAMES, PACKAGING, Proxy, program, running
from tests.pair_harness import TaskHarness, open_pair, query_at, until
from tests.raw_http import read_all
from tests.task_pair import make_ids

CLIENT = "127.0.0.7"
"""An address of this machine that only Clients have here."""
LIMIT = Server().max_body_bytes
REAL = 25
LONG_REPORTS = "sumvec:length=1,max_measurement=1,chunk_length=4185"
"""So long that a job of as many as a Leader puts into one is as long as a request may be."""
UPLOAD = {"Content-Type": str(MediaType.UPLOAD_REQ)}
each_proxy = pytest.mark.parametrize(
    "name",
    [
        pytest.param(
            name,
            marks=pytest.mark.skipif(program(name) is None, reason=f"{name} is not installed"),
        )
        for name in NAMES
    ],
)


@asynccontextmanager
async def alone(name: str, directory: Path) -> AsyncIterator[tuple[Pair, Proxy, Authority]]:
    """A pair, of which the Leader is behind a proxy."""
    authority = Authority(directory / "tls").issue()
    async with (
        open_pair(directory) as (pair, _),
        running(name, directory / name, pair.leader.port, authority) as proxy,
    ):
        yield pair, proxy, authority


@asynccontextmanager
async def behind(
    name: str, directory: Path, *, helper: dict[str, dict[str, Any]]
) -> AsyncIterator[tuple[Pair, Proxy, Proxy, Authority]]:
    """A pair, each of the two behind a proxy of its own."""
    authority = Authority(directory / "tls").issue()
    leader = {"leader": {"peer_ca": authority.file}}
    async with (
        open_pair(directory, leader=leader, helper=helper) as (pair, _),
        running(name, directory / "before-leader", pair.leader.port, authority) as before_leader,
        running(name, directory / "before-helper", pair.helper.port, authority) as before_helper,
    ):
        yield pair, before_leader, before_helper, authority


def endpoints(leader: Proxy, helper: Proxy) -> dict[str, Any]:
    return {"leader_aggregator_endpoint": leader.url, "helper_aggregator_endpoint": helper.url}


def client_of(authority: Authority, **options: Any) -> httpx2.AsyncClient:
    """An HTTP client whose address is ``CLIENT``."""
    transport = httpx2.AsyncHTTPTransport(
        verify=trusting(authority.file), local_address=CLIENT, **options
    )
    return httpx2.AsyncClient(transport=transport, timeout=None)


def hold_for(pair: Pair, seconds: float) -> None:
    """Let the Leader hold requests for collection jobs so long."""
    context = pair.leader.context
    collection = msgspec.structs.replace(context.config.collection, poll_hold=seconds)
    context.config = msgspec.structs.replace(context.config, collection=collection)


@each_proxy
async def test_a_task_runs_through_proxies_and_a_held_request_is_held(
    tmp_path: Path, name: str
) -> None:
    """Client to Leader, Leader to Helper, which answers later, and a Collector whose GET the Leader
    holds until there is a result.
    """
    async with behind(name, tmp_path, helper={"helper": {"mode": "async"}}) as houses:
        pair, *proxies, authority = houses
        task = await pair.new_task("sum:max_measurement=10", **endpoints(*proxies))
        context = pair.leader.context
        hold_for(pair, 0.0)
        client = Client(task.files.client, ca=authority.file, clock=pair.seconds)
        collector = Collector(task.files.collector, ca=str(authority.file))

        async def held() -> bool:
            rows = await context.read(lambda tx: tx.all("SELECT id FROM collection_jobs"))
            return any(
                context.finished.listen(("collection", job_id)).statistics().tasks_waiting
                for (job_id,) in rows
            )

        async def collect() -> None:
            async with collector.collect(query_at()) as result:
                assert result.value == 12

        async with client, collector, trio.open_nursery() as nursery:
            nursery.start_soon(collect)
            await context.jobs.wait(60)  # the POST has made the job
            hold_for(pair, 3600.0)
            await until(held)
            assert (await client.upload([3, 4, 5])).accepted == 3
        for proxy in proxies:
            assert_silent(proxy)


@each_proxy
async def test_a_job_of_the_greatest_size_passes(tmp_path: Path, name: str) -> None:
    """As many reports as a Leader puts into one, in a request almost as long as any may be. All but
    a few are copies with another id: to make so many real ones takes longer than to verify them.
    """
    authority = Authority(tmp_path / "tls").issue()
    async with (
        open_pair(tmp_path) as (pair, http),
        running(name, tmp_path / name, pair.helper.port, authority) as proxy,
        DapHttp(tls=trusting(authority.file)) as over_tls,
    ):
        hands = TaskHarness(await pair.new_task(LONG_REPORTS), http)
        job = hands.start_job(hands.seal([[1]] * REAL, "real"))
        body = aggregation_job_init_req(0, b"", with_copies(job.started.verify_inits))
        assert LIMIT - len(body) < len(body) / Leader().max_job_size
        url = resource_url(proxy.url, "tasks", hands.id_text, "aggregation_jobs")
        outcome = await over_tls.create(url, body, MediaType.AGGREGATION_JOB_INIT_REQ, job.token)
        assert isinstance(outcome, Ready), outcome
        assert await hands.counters(pair.helper) == {
            "aggregate_finished": REAL,
            "aggregate_hpke_decrypt_error": Leader().max_job_size - REAL,
        }
        assert_silent(proxy)


def with_copies(verify_inits: bytes) -> bytes:
    """``REAL`` of them, and as many more as a Leader puts into a job, with ids of their own."""
    size = len(verify_inits) // REAL
    assert size * REAL == len(verify_inits)
    ids = split_ids(make_ids(Leader().max_job_size - REAL, "copies"))
    return verify_inits + b"".join(each + verify_inits[16:size] for each in ids)


@each_proxy
async def test_a_body_that_is_too_long_is_refused(tmp_path: Path, name: str) -> None:
    """One as long as may be is read to its end by dapd. A longer one nginx refuses; Caddy leaves
    that to dapd, but may cut the connection of whoever goes on sending.
    """
    async with alone(name, tmp_path) as (pair, proxy, authority), client_of(authority) as client:
        url = await uploads_of(pair, proxy)
        answer = await client.post(url, content=bytes(LIMIT), headers=UPLOAD)
        assert answer.status_code == 400
        assert answer.json()["detail"].endswith("at byte 33"), "where the first report goes wrong"
        try:
            answer = await client.post(url, content=bytes(LIMIT + 1), headers=UPLOAD)
        except httpx2.TransportError:
            assert name == "caddy"
        else:
            assert answer.status_code in ((413,) if name == "nginx" else (413, 502))
        assert_silent(proxy)


@each_proxy
async def test_clients_may_speak_http_2(tmp_path: Path, name: str) -> None:
    """dapd is spoken to by HTTP/1.1 all the same, and keeps its connection."""
    async with (
        alone(name, tmp_path) as (pair, proxy, authority),
        client_of(authority, http2=True) as client,
    ):
        answer = await client.get(f"{proxy.url}any/prefix/hpke_config")
        assert (answer.status_code, answer.http_version) == (200, "HTTP/2")
        assert "server" not in answer.headers or answer.headers["Server"] == "nginx"
        url = await uploads_of(pair, proxy)
        answer = await client.post(url, content=bytes(2**20), headers=UPLOAD)
        assert (answer.status_code, answer.http_version) == (400, "HTTP/2")
        assert (await client.get(f"{proxy.url}metrics")).status_code == 404
        assert_silent(proxy)


@each_proxy
async def test_no_address_of_a_client_is_written(tmp_path: Path, name: str) -> None:
    """Whatever goes wrong: a bad handshake, nonsense, a cut upload, a daemon that is down."""
    async with alone(name, tmp_path) as (pair, proxy, authority), client_of(authority) as client:
        url = await uploads_of(pair, proxy)
        assert (await client.post(url, content=b"?", headers=UPLOAD)).status_code == 400
        for sent in (b"GET / HTTP/1.1\r\nHost: x\r\n\r\n", b"\x16\x03\x01\xff\xff" + bytes(99)):
            async with await from_client(proxy.port) as stream:
                await stream.send_all(sent)
                await stream.send_eof()
                await read_all(stream)
        await trio.aclose_forcefully(await begun_upload(url, authority, LIMIT))
        await pair.leader.stop()
        assert (await client.post(url, content=b"?", headers=UPLOAD)).status_code == 502
    assert_silent(proxy)
    assert CLIENT.encode() not in proxy.written(), proxy.written().decode()


def test_proxies_wait_longer_than_daemons() -> None:
    """By the defaults of all that a request may wait for, and of how long it may be."""
    longest = max(
        Helper().sync_wait + Helper().poll_hold, Collection().poll_hold, Leader().request_timeout
    )
    nginx, caddy = ((PACKAGING / file).read_text() for file in ("nginx.conf", "Caddyfile"))
    for pattern, text in (
        (r"proxy_read_timeout (\d+)s;", nginx),
        (r"proxy_send_timeout (\d+)s;", nginx),
        (r"response_header_timeout (\d+)s\n", caddy),
    ):
        (seconds,) = re.findall(pattern, text)
        assert int(seconds) > longest, pattern
    (stalled,) = re.findall(r"client_body_timeout (\d+)s;", nginx)
    assert int(stalled) < Server().read_timeout
    (megabytes,) = re.findall(r"client_max_body_size (\d+)m;", nginx)
    assert int(megabytes) * 2**20 == LIMIT


def assert_silent(proxy: Proxy) -> None:
    """No line for a request, and no temporary file, for which there is no place."""
    access_log = proxy.directory / "access.log"
    assert not access_log.exists() or access_log.read_text() == ""
    assert not (proxy.directory / "spool").exists()
    assert b"tasks/" not in proxy.written(), proxy.written().decode()


async def uploads_of(pair: Pair, proxy: Proxy) -> str:
    """Where reports of a new task go, by way of a proxy before the Leader."""
    task = await pair.new_task()
    return resource_url(proxy.url, "tasks", b64url_encode(task.task_id), "reports")


async def begun_upload(
    url: str, authority: Authority, length: int
) -> trio.SSLStream[trio.SocketStream]:
    """The connection of a Client that has sent the first bytes of so many."""
    parts = urlsplit(url)
    assert parts.port is not None
    stream = trio.SSLStream(
        await from_client(parts.port),
        trusting(authority.file),
        server_hostname=parts.hostname,
        https_compatible=True,
    )
    fields = UPLOAD | {"Host": parts.netloc, "Content-Length": str(length)}
    lines = [f"{name}: {value}\r\n" for name, value in fields.items()]
    head = f"POST {parts.path} HTTP/1.1\r\n{''.join(lines)}\r\n"
    await stream.send_all(head.encode() + bytes(2**16))
    return stream


async def from_client(port: int) -> trio.SocketStream:
    sock = trio.socket.socket()
    await sock.bind((CLIENT, 0))
    await sock.connect(("127.0.0.1", port))
    return trio.SocketStream(sock)
