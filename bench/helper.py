"""How fast a dapd Helper verifies and aggregates, beside what its cryptography costs.

    python bench/helper.py --reports 200000

All requests are prepared beforehand, then sent to a real daemon over loopback, several at a time.
Load generator and daemon share the machine. The floor is the same verification, called in this
process on all cores without HTTP, database or anything else. Prints one line a measurement, in
reports per second, and at the end the daemon's peak memory.
"""

from __future__ import annotations

import argparse
import os
import secrets
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import trio

from dapd.crypto import HpkeKeypair, Keyring, make_sealer
from dapd.http import DapHttp, Ready
from dapd.messages.aggregation import AggregationJobInitHead
from dapd.messages.common import HpkeConfig, HpkeConfigList, MediaType, b64url_encode
from dapd.reports import (
    HelperJob,
    ReportRules,
    TaskParameters,
    leader_start,
    open_uploads,
    seal_reports,
    shard,
)
from dapd.taskfile import HelperTask, TaskDraft, new_task, parse_vdaf_spec, write_task_file
from dapd.vdaf import make_vdaf

SUITE = (0x0020, 0x0001, 0x0001)
PRECISION = 3600


@dataclass(frozen=True)
class Load:
    """Prepared requests for one task."""

    task: HelperTask
    parameters: TaskParameters
    bodies: list[bytes]
    job_size: int


def prepare(task: HelperTask, helper: HpkeConfig, jobs: int, job_size: int) -> Load:
    """Reports of ones (count) made, uploaded and prepared as a Leader does."""
    configuration = task.configuration
    encoded = configuration.encode()
    vdaf = make_vdaf(configuration.vdaf)
    parameters = TaskParameters(
        vdaf, task.task_id, encoded, task.vdaf_verify_key, bucket_by_time=True
    )
    now = int(time.time()) // PRECISION
    rules = ReportRules(too_early_after=now + 1, task_start=0, task_end=2**64 - 1, expired_before=0)
    leader_key = HpkeKeypair.generate(1, *SUITE)
    sealer = make_sealer([secrets.token_bytes(32)])
    head = AggregationJobInitHead(task.verification_key_id, b"", ()).encode()
    bodies = []
    for _ in range(jobs):
        ids = secrets.token_bytes(16 * job_size)
        columns = shard(vdaf, task.task_id, [1] * job_size, ids)
        reports = seal_reports(
            task.task_id,
            encoded,
            leader_key.config,
            helper.as_tuple,
            ids,
            [now] * job_size,
            *columns,
        )
        group = open_uploads(
            [(parameters, rules, b"".join(reports))], Keyring([leader_key]), sealer
        )
        chunks = [
            (ids, lengths, rows)
            for part in group.parts
            for _, _, _, ids, lengths, rows in part.chunks(bytes(part.count), job_size)
        ]
        started = leader_start(parameters, rules, sealer, secrets.token_bytes(16), chunks)
        bodies.append(head + started.verify_inits)
    return Load(task, parameters, bodies, job_size)


@dataclass(frozen=True)
class Answer:
    """One HTTP response."""

    status: int
    headers: dict[str, str]
    body: bytes


class Connection:
    """Just enough HTTP/1.1 to cost little."""

    def __init__(self, stream: trio.SocketStream) -> None:
        self._stream = stream
        self._buffer = bytearray()

    async def ask(self, method: str, path: str, token: str, body: bytes = b"") -> Answer:
        head = (
            f"{method} {path} HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {token}\r\n"
            "Content-Type: application/ppm-dap;message=aggregation-job-init-req\r\n"
            f"Content-Length: {len(body)}\r\n\r\n"
        )
        await self._stream.send_all(head.encode() + body)
        while (end := self._buffer.find(b"\r\n\r\n")) < 0:
            await self._more()
        status, *lines = self._buffer[:end].decode("latin-1").split("\r\n")
        headers = {
            name.lower(): value.strip() for name, _, value in (x.partition(":") for x in lines)
        }
        size = int(headers.get("content-length", "0"))
        del self._buffer[: end + 4]
        while len(self._buffer) < size:
            await self._more()
        content = bytes(self._buffer[:size])
        del self._buffer[:size]
        return Answer(int(status.split()[1]), headers, content)

    async def _more(self) -> None:
        received = await self._stream.receive_some(1 << 20)
        if not received:
            raise ConnectionError("the daemon closed the connection")
        self._buffer += received


async def drive(port: int, load: Load, at_once: int) -> float:
    """Send every request, poll until each is answered with its result; the seconds it took."""
    waiting = iter(load.bodies)
    path = f"/tasks/{b64url_encode(load.task.task_id)}/aggregation_jobs"
    token = load.task.aggregator_auth_token

    async def worker() -> None:
        connection = Connection(await trio.open_tcp_stream("127.0.0.1", port))
        for body in waiting:
            answer = await connection.ask("POST", path, token, body)
            while answer.status == 200 and not answer.body:
                answer = await connection.ask("GET", answer.headers["location"], token)
            if answer.status != 200:
                raise RuntimeError(f"{answer.status}: {answer.body.decode(errors='replace')}")
            if len(answer.body) < 17 * load.job_size:
                raise RuntimeError("the answer is too short for the job")

    start = time.perf_counter()
    async with trio.open_nursery() as nursery:
        for _ in range(at_once):
            nursery.start_soon(worker)
    return time.perf_counter() - start


def floor(load: Load, keypair: HpkeKeypair, threads: int) -> float:
    """Reports per second of the verification alone, each job on all cores."""
    rules = ReportRules(too_early_after=2**62, task_start=0, task_end=2**64 - 1, expired_before=0)
    sealer = make_sealer([secrets.token_bytes(32)])
    offset = len(AggregationJobInitHead(load.task.verification_key_id, b"", ()).encode())
    bodies = load.bodies[: 20 * threads]
    start = time.perf_counter()
    for body in bodies:
        job = HelperJob(body, offset)
        verified = job.verify(
            load.parameters, rules, Keyring([keypair]), sealer, bytes(16), None, bytes(job.count)
        )
        verified.finish([], bytes(job.count))
    return len(bodies) * load.job_size / (time.perf_counter() - start)


@contextmanager
def daemon(
    directory: Path, port: int, mode: str, tasks: list[HelperTask]
) -> Iterator[subprocess.Popen[bytes]]:
    """A Helper with ``tasks``, in ``mode``."""
    command = [sys.executable, "-m", "dapd"]
    url = f"http://127.0.0.1:{port}/"
    subprocess.run(
        [*command, "init", "--role", "helper", "--url", url, "--dir", str(directory)],
        check=True, stdout=subprocess.DEVNULL,
    )  # fmt: skip
    config = directory / "dapd.toml"
    text = config.read_text().replace('mode = "async"', f'mode = "{mode}"')
    config.write_text(text)
    for number, task in enumerate(tasks):
        file = directory / f"task-{number}.toml"
        write_task_file(file, task)
        subprocess.run(
            [*command, "--config", str(config), "task", "add", str(file)],
            check=True, stdout=subprocess.DEVNULL,
        )  # fmt: skip
    with (directory / "log").open("wb") as log:
        process = subprocess.Popen([*command, "--config", str(config)], stdout=log, stderr=log)
        try:
            yield process
        finally:
            process.terminate()
            process.wait()


def peak_megabytes(process: subprocess.Popen[bytes]) -> float:
    """The most memory that the daemon has had so far."""
    status = Path(f"/proc/{process.pid}/status").read_text()
    line = next(line for line in status.splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) / 1024


def make_task(vdaf: str, helper_url: str) -> HelperTask:
    """A new task, as its Helper gets it."""
    draft = TaskDraft(
        vdaf=parse_vdaf_spec(vdaf),
        leader_aggregator_endpoint="http://127.0.0.1:1/",
        helper_aggregator_endpoint=helper_url,
        batch_mode="time-interval",
        time_precision=PRECISION,
        min_batch_size=100,
    )
    return new_task(draft).helper


async def hpke_config(http: DapHttp, url: str) -> HpkeConfig:
    """The Helper's key, once it answers."""
    # Another process gives no event to wait for.
    while not isinstance(answer := await http.get(url, MediaType.HPKE_CONFIG_LIST), Ready):  # noqa: ASYNC110
        await trio.sleep(0.05)
    return HpkeConfigList.decode(answer.body).configs[0]


async def measure(mode: str, port: int, arguments: argparse.Namespace) -> None:
    """Start a Helper in ``mode``, prepare its requests, send them, print the rate."""
    task = make_task(arguments.vdaf, f"http://127.0.0.1:{port}/")
    with (
        tempfile.TemporaryDirectory(prefix="dapd-bench-") as name,
        daemon(Path(name), port, mode, [task]) as process,
    ):
        async with DapHttp() as http:
            key = await hpke_config(http, f"http://127.0.0.1:{port}/hpke_config")
        jobs = arguments.reports // arguments.job_size
        load = await trio.to_thread.run_sync(prepare, task, key, jobs, arguments.job_size)
        seconds = await drive(port, load, arguments.at_once)
        rate, peak = jobs * arguments.job_size / seconds, peak_megabytes(process)
        print(f"{mode:6} {rate:10,.0f} reports/s   {seconds:6.1f} s   peak {peak:.0f} MB")


def measure_floor(arguments: argparse.Namespace) -> None:
    """What the cryptography alone allows on this machine, now."""
    task = make_task(arguments.vdaf, "http://127.0.0.1:2/")
    keypair = HpkeKeypair.generate(1, *SUITE)
    cores = os.cpu_count() or 1
    load = prepare(task, HpkeConfig(*keypair.config), 20 * cores, arguments.job_size)
    rate = floor(load, keypair, cores)
    print(f"floor  {rate:10,.0f} reports/s   {1e6 * cores / rate:6.1f} us a report and core")


def main() -> None:
    """The program."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--reports", type=int, default=100_000)
    parser.add_argument("--job-size", type=int, default=500)
    parser.add_argument("--at-once", type=int, default=8)
    parser.add_argument("--vdaf", default="count")
    parser.add_argument("--port", type=int, default=18080)
    parser.add_argument("--modes", nargs="*", default=["sync", "async"])
    arguments = parser.parse_args()
    jobs = f"jobs of {arguments.job_size}, {arguments.at_once} at a time"
    print(f"{arguments.vdaf}: {arguments.reports:,} reports, {jobs}")
    measure_floor(arguments)
    for mode in arguments.modes:
        trio.run(measure, mode, arguments.port, arguments)


if __name__ == "__main__":
    main()
