"""Measure how many reports per second a dapd Leader accepts, with one or many per request.

    python bench/upload.py

All requests are prepared beforehand, and sent to a real daemon over loopback HTTP, on several
connections at a time. Each answer follows a commit with ``synchronous=FULL``. The load generator
and the daemon share the machine.
"""

from __future__ import annotations

import argparse
import secrets
import tempfile
import time
from pathlib import Path

import trio
from common import PRECISION, SUITE, Connection, daemon, hpke_config, make_task, peak_megabytes

from dapd.crypto import HpkeKeypair
from dapd.http import DapHttp
from dapd.messages.common import HpkeConfig, MediaType, b64url_encode
from dapd.reports import seal_reports, shard
from dapd.taskfile import ClientTask
from dapd.vdaf import make_vdaf


def prepare(task: ClientTask, leader: HpkeConfig, count: int) -> list[bytes]:
    """Make reports of this hour; nobody will open the Helper's shares."""
    configuration = task.configuration
    ids = secrets.token_bytes(16 * count)
    columns = shard(make_vdaf(configuration.vdaf), task.task_id, [1] * count, ids)
    helper = HpkeKeypair.generate(1, *SUITE).config
    times = [int(time.time()) // PRECISION] * count
    return seal_reports(
        task.task_id, configuration.encode(), leader.as_tuple, helper, ids, times, *columns
    )


async def drive(port: int, path: str, bodies: list[bytes], connections: int) -> float:
    """Send every request, requiring that all reports are accepted; return the seconds it took."""
    waiting = iter(bodies)

    async def client() -> None:
        connection = Connection(await trio.open_tcp_stream("127.0.0.1", port))
        for body in waiting:
            answer = await connection.ask("POST", path, MediaType.UPLOAD_REQ, body)
            if answer.status != 200 or answer.body:
                raise RuntimeError(f"{answer.status}: {answer.body!r}")

    start = time.perf_counter()
    async with trio.open_nursery() as nursery:
        for _ in range(connections):
            nursery.start_soon(client)
    return time.perf_counter() - start


async def measure(arguments: argparse.Namespace) -> None:
    """Start a Leader whose Helper can't be reached, and upload to it."""
    port = arguments.port
    url = f"http://127.0.0.1:{port}/"
    files = make_task(arguments.vdaf, url, "http://127.0.0.1:1/")
    with (
        tempfile.TemporaryDirectory(prefix="dapd-bench-") as name,
        daemon(Path(name), "leader", port, files.leader) as process,
    ):
        async with DapHttp() as http:
            key = await hpke_config(http, f"{url}hpke_config")
        path = f"/tasks/{b64url_encode(files.client.task_id)}/reports"
        for size, requests in ((1, arguments.singles), (arguments.bulk, arguments.bulks)):
            reports = await trio.to_thread.run_sync(prepare, files.client, key, size * requests)
            bodies = [b"".join(reports[at : at + size]) for at in range(0, size * requests, size)]
            seconds = await drive(port, path, bodies, arguments.connections)
            rate, peak = len(reports) / seconds, peak_megabytes(process)
            print(f"{size:4} per request {rate:10,.0f} reports/s   peak {peak:.0f} MB")


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--singles", type=int, default=10_000)
    parser.add_argument("--bulks", type=int, default=1_000)
    parser.add_argument("--bulk", type=int, default=100)
    parser.add_argument("--connections", type=int, default=64)
    parser.add_argument("--vdaf", default="count")
    parser.add_argument("--port", type=int, default=18090)
    arguments = parser.parse_args()
    print(f"{arguments.vdaf}: {arguments.connections} connections")
    trio.run(measure, arguments)


if __name__ == "__main__":
    main()
