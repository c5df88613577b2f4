"""Much, large, and slow: what one peer sends does not stop the others, or fill the memory."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import trio

from dapd.messages.common import MediaType, b64url_encode
from dapd.reports import count_outcomes
from tests import raw_http
from tests.crash.load import open_house
from tests.hostile.probe import ones_everywhere
from tests.pair_harness import TaskHarness, open_pair, query_at
from tests.processes.daemons import SECONDS, DaemonProcess, assert_calm, start

MANY = 10_000
CONNECTIONS = 300
ROOM_KIB = 64 << 10
"""What a few hundred requests may cost; a length that were believed costs more."""


async def test_ten_thousand_tiny_reports_in_one_request_and_in_one_job(tmp_path: Path) -> None:
    """An upload and a job of the size of thousands are as exact as small ones (I1, I6, D5)."""
    async with open_pair(tmp_path) as (pair, http):
        task = await pair.new_task("count", min_batch_size=MANY)
        hands = TaskHarness(task, http)
        reports = await trio.to_thread.run_sync(hands.seal, [1, 0] * (MANY // 2), "many")
        assert await hands.upload(reports) == []
        await hands.until_counted(pair.leader, "upload_accepted", MANY)
        result = await task.collect(query_at())
        assert (result.report_count, result.value) == (MANY, MANY // 2)

        other = TaskHarness(await pair.new_task("count"), http)
        reports = await trio.to_thread.run_sync(other.seal, [1] * MANY, "one job")
        finished = await other.start_job(reports).run()
        assert count_outcomes(finished.outcomes) == {0: MANY}


async def test_a_body_as_large_as_can_be_is_read_and_refused(tmp_path: Path) -> None:
    """Of exactly ``max_body_bytes``: nonsense is an error of the draft, and one byte more a 413."""
    limit = 2 << 20
    tables: dict[str, dict[str, Any]] = {"server": {"max_body_bytes": limit}}
    async with open_pair(tmp_path, leader=tables, helper=tables) as (pair, http):
        hands = TaskHarness(await pair.new_task("count"), http)
        token = hands.task.files.leader.aggregator_auth_token
        for side, resource, content in (
            (pair.leader, "reports", MediaType.UPLOAD_REQ),
            (pair.helper, "aggregation_jobs", MediaType.AGGREGATION_JOB_INIT_REQ),
        ):
            path = f"/tasks/{hands.id_text}/{resource}"
            headers = {"Content-Type": content.value, "DAP-Auth-Token": token}
            for filling in (b"\0", b"\xff"):
                reply = await raw_http.ask(side.port, "POST", path, headers, filling * limit)
                assert (reply.status, reply.error) == (400, "invalidMessage")
            over = {**headers, "Content-Length": str(limit + 1)}
            assert (await raw_http.ask(side.port, "POST", path, over)).status == 413


async def test_half_open_connections_stop_nobody_and_are_closed(tmp_path: Path) -> None:
    """Hundreds that say nothing, half a head, or half a body: others are served meanwhile, and
    ``read_timeout`` ends each of them.
    """
    tables: dict[str, dict[str, Any]] = {"server": {"read_timeout": 2.0}}
    async with open_pair(tmp_path, leader=tables) as (pair, http):
        task = await pair.new_task("count")
        hands = TaskHarness(task, http)
        path = f"/tasks/{hands.id_text}/reports"
        headers = {"Content-Type": MediaType.UPLOAD_REQ.value, "Content-Length": "1000"}
        body_missing = raw_http.request("POST", path, headers)
        stalled: list[trio.SocketStream] = []
        for number in range(CONNECTIONS):
            stream = await trio.open_tcp_stream("127.0.0.1", pair.leader.port)
            await stream.send_all((b"", body_missing[:20], body_missing)[number % 3])
            stalled.append(stream)
        assert await hands.upload(hands.seal([1, 1], "meanwhile")) == []
        assert (await task.collect(query_at())).value == 2
        async with trio.open_nursery() as nursery:
            for stream in stalled:
                nursery.start_soon(raw_http.read_all, stream)
        for stream in stalled:
            await stream.aclose()
        assert await hands.upload(hands.seal([1], "afterwards", at=500_000 - 1)) == []


async def test_lengths_that_lie_take_no_memory(tmp_path: Path) -> None:
    """A few bytes that announce up to 4 GiB are refused without the room for them."""
    with trio.fail_after(SECONDS):
        async with open_house(tmp_path) as house:
            files = house.new_task("sync", "time-interval")
            await start(*house.daemons)
            path = f"/tasks/{b64url_encode(files.client.task_id)}/"
            token = files.leader.aggregator_auth_token
            before = [peak_kib(daemon) for daemon in house.daemons]
            for daemon, resource, content, size in (
                (house.leader, "reports", MediaType.UPLOAD_REQ, 60),
                (house.helper, "aggregation_jobs", MediaType.AGGREGATION_JOB_INIT_REQ, 100),
                (house.helper, "aggregate_shares", MediaType.AGGREGATE_SHARE_REQ, 60),
            ):
                headers = {"Content-Type": content.value, "DAP-Auth-Token": token}
                for body in ones_everywhere(bytes(size)):
                    reply = await raw_http.ask(
                        daemon.wire.port, "POST", path + resource, headers, body
                    )
                    assert reply.status in {200, 400}
            for daemon, most in zip(house.daemons, before, strict=True):
                assert peak_kib(daemon) < most + ROOM_KIB
                assert await daemon.stop() == 0
            assert_calm(house.daemons)


def peak_kib(daemon: DaemonProcess) -> int:
    """The most memory that the process has had resident, in KiB."""
    assert daemon.process is not None
    status = Path(f"/proc/{daemon.process.pid}/status").read_text()
    [line] = [line for line in status.splitlines() if line.startswith("VmHWM:")]
    return int(line.split()[1])
