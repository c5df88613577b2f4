"""Clients that hang up, or never finish: what was begun reaches its commit, others are served."""

from __future__ import annotations

import hashlib
import socket
import struct
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio

from dapd.datastore import Tx
from dapd.messages.collection import AggregateShareReq, BatchSelector, CollectionJobReq, Query
from dapd.messages.common import Interval, MediaType
from dapd.reports import ReportError
from dapd.testing.pair import Aggregator
from tests import raw_http
from tests.clock import TIME
from tests.pair_harness import DEADLINE, TaskHarness, open_pair, query_at, until

HALF_OPEN = 200
INIT, SHARE = MediaType.AGGREGATION_JOB_INIT_REQ, MediaType.AGGREGATE_SHARE_REQ


@asynccontextmanager
async def no_commit(side: Aggregator) -> AsyncIterator[None]:
    """Nothing commits inside this block: the writer is held by a transaction of the test's."""
    held, released = trio.Event(), threading.Event()

    def hold(_: Tx) -> None:
        trio.from_thread.run_sync(held.set, trio_token=token)
        released.wait(DEADLINE)

    token = trio.lowlevel.current_trio_token()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(side.context.run, hold)
        await held.wait()
        try:
            yield
        finally:
            released.set()


def post(hands: TaskHarness, resource: str, content: MediaType, body: bytes) -> bytes:
    """A whole request to the Helper, with the Leader's token."""
    token = hands.task.files.leader.aggregator_auth_token
    headers = {"Content-Type": content.value, "Authorization": f"Bearer {token}"}
    return raw_http.request("POST", f"/tasks/{hands.id_text}/{resource}", headers, body)


def upload(hands: TaskHarness, reports: list[bytes]) -> bytes:
    """A whole upload."""
    headers = {"Content-Type": MediaType.UPLOAD_REQ.value}
    return raw_http.request("POST", f"/tasks/{hands.id_text}/reports", headers, b"".join(reports))


def share_request(ids: list[bytes]) -> bytes:
    """The ``AggregateShareReq`` for a batch of these two reports."""
    first, second = (hashlib.sha256(each).digest() for each in ids)
    checksum = bytes(a ^ b for a, b in zip(first, second, strict=True))
    noon = Interval(TIME, 1)
    return AggregateShareReq(
        CollectionJobReq(Query(noon)), BatchSelector(noon), 2, checksum
    ).encode()


async def reset(stream: trio.SocketStream) -> None:
    """Gone without a word: what is under way to it is refused."""
    stream.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    await stream.aclose()


@pytest.mark.parametrize("resource", ["aggregation_jobs", "aggregate_shares"])
async def test_a2_work_whose_client_hangs_up_reaches_its_commit(
    tmp_path: Path, resource: str
) -> None:
    """A2: the handler ends with its connection, the work it began doesn't; a repeat finds it."""
    async with open_pair(tmp_path, helper={"helper": {"mode": "sync"}}) as (pair, http):
        hands = TaskHarness(await pair.new_task("count"), http)
        job = hands.start_job(hands.seal([1, 1], "left alone"))
        sent = post(hands, resource, INIT, job.request)
        if resource == "aggregate_shares":
            await job.run()
            sent = post(hands, resource, SHARE, share_request(job.ids))
        work = pair.helper.context.work

        async def begun() -> bool:
            return len(work) == 1

        async def ended() -> bool:
            return len(work) == 0

        async with await trio.open_tcp_stream("127.0.0.1", pair.helper.port) as stream:
            async with no_commit(pair.helper):
                await stream.send_all(sent)
                await until(begun)
                await stream.send_eof()
                assert await raw_http.read_all(stream) == b"", "its handler has ended unanswered"
                assert len(work) == 1, "its work goes on"
            await until(ended)
        table = {"aggregation_jobs": "aggregation_jobs", "aggregate_shares": "aggregate_share_jobs"}
        rows = await pair.helper.context.read(
            lambda tx: tx.all(f"SELECT id FROM {table[resource]}")  # noqa: S608 - a constant
        )
        assert len(rows) == 1, "committed, although nobody waited"
        again = raw_http.parse(await raw_http.exchange(pair.helper.port, sent))
        assert again.status == 200
        assert again.body
        assert (await hands.counters(pair.helper))["aggregate_finished"] == 2


async def test_uploads_whose_clients_hang_up_are_stored_once_or_not_at_all(tmp_path: Path) -> None:
    """I1, I2: cut anywhere, also between the last byte and the answer; sent again, each counts
    once, and the daemon serves on.
    """
    async with open_pair(tmp_path) as (pair, http):
        task = await pair.new_task("count")
        hands = TaskHarness(task, http)
        bodies = [hands.seal([1, 1], f"client {number}") for number in range(24)]
        requests = [upload(hands, body) for body in bodies]

        async def hang_up(sent: bytes, part: int) -> None:
            stream = await trio.open_tcp_stream("127.0.0.1", pair.leader.port)
            await stream.send_all(sent[: len(sent) * part // 4])
            await reset(stream)

        async with trio.open_nursery() as nursery:
            for number, sent in enumerate(requests):
                nursery.start_soon(hang_up, sent, 1 + number % 4)
        for sent in requests:
            reply = raw_http.parse(await raw_http.exchange(pair.leader.port, sent))
            assert reply.status == 200
        await hands.until_counted(pair.leader, "upload_accepted", 48)
        result = await task.collect(query_at())
        assert (result.report_count, result.value) == (48, 48)


async def test_half_open_connections_to_the_helper_stop_no_collection(tmp_path: Path) -> None:
    """Hundreds that have sent half a head, or half a job with the right token, and say no more."""
    async with open_pair(tmp_path) as (pair, http):
        task = await pair.new_task("count")
        hands = TaskHarness(task, http)
        job = hands.start_job(hands.seal([1] * 20, "never whole"))
        whole = post(hands, "aggregation_jobs", INIT, job.request)
        halves = whole[:40], whole[: -len(job.request) // 2]
        stalled = []
        for number in range(HALF_OPEN):
            stream = await trio.open_tcp_stream("127.0.0.1", pair.helper.port)
            await stream.send_all(halves[number % 2])
            stalled.append(stream)
        assert await hands.upload(hands.seal([1, 0, 1], "meanwhile")) == []
        assert (await task.collect(query_at())).value == 2
        for stream in stalled:
            await reset(stream)
        counted = await hands.counters(pair.helper)
        assert counted["aggregate_finished"] == 3, "half a job is no job"
        assert (await job.run()).outcomes == bytes([ReportError.BATCH_COLLECTED] * 20)
