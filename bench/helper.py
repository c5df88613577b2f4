"""Measure how fast a dapd Helper verifies and aggregates, beside the cost of its cryptography.

    python bench/helper.py --reports 200000

All requests are prepared beforehand, then sent to a real daemon over loopback, several at a time.
The load generator and the daemon share the machine. The floor is the same verification, called in
this process on all cores, without HTTP, database or anything else. Each measurement prints one line
with the reports per second and the daemon's peak memory.
"""

from __future__ import annotations

import argparse
import os
import secrets
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import trio
from common import PRECISION, SUITE, Connection, daemon, hpke_config, make_task, peak_megabytes

from dapd.crypto import HpkeKeypair, Keyring, make_sealer
from dapd.http import DapHttp
from dapd.messages.aggregation import AggregationJobInitHead
from dapd.messages.common import HpkeConfig, MediaType, b64url_encode
from dapd.reports import (
    HelperJob,
    ReportRules,
    TaskParameters,
    leader_start,
    open_uploads,
    seal_reports,
    shard,
)
from dapd.taskfile import HelperTask
from dapd.vdaf import make_vdaf

INIT = MediaType.AGGREGATION_JOB_INIT_REQ
NOBODY = "http://127.0.0.1:1/"


@dataclass(frozen=True)
class Load:
    """Requests for one task, prepared beforehand."""

    task: HelperTask
    parameters: TaskParameters
    bodies: list[bytes]
    job_size: int


def prepare(task: HelperTask, helper: HpkeConfig, jobs: int, job_size: int) -> Load:
    """Make reports of measurement 1, and prepare job requests from them as a Leader does."""
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


async def drive(port: int, load: Load, at_once: int) -> float:
    """Send every request and poll until each has its result; return the seconds it took."""
    waiting = iter(load.bodies)
    path = f"/tasks/{b64url_encode(load.task.task_id)}/aggregation_jobs"
    token = load.task.aggregator_auth_token

    async def worker() -> None:
        connection = Connection(await trio.open_tcp_stream("127.0.0.1", port))
        for body in waiting:
            answer = await connection.ask("POST", path, INIT, body, token)
            while answer.status == 200 and not answer.body:
                answer = await connection.ask("GET", answer.headers["location"], INIT, token=token)
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
    """Return the reports per second of the verification alone, each job on all cores."""
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


async def measure(mode: str, port: int, arguments: argparse.Namespace) -> None:
    """Start a Helper in ``mode``, prepare its requests, send them, and print the rate."""
    task = make_task(arguments.vdaf, NOBODY, f"http://127.0.0.1:{port}/").helper
    with (
        tempfile.TemporaryDirectory(prefix="dapd-bench-") as name,
        daemon(Path(name), "helper", port, task, mode=mode) as process,
    ):
        async with DapHttp() as http:
            key = await hpke_config(http, f"http://127.0.0.1:{port}/hpke_config")
        jobs = arguments.reports // arguments.job_size
        load = await trio.to_thread.run_sync(prepare, task, key, jobs, arguments.job_size)
        seconds = await drive(port, load, arguments.at_once)
        rate, peak = jobs * arguments.job_size / seconds, peak_megabytes(process)
        print(f"{mode:6} {rate:10,.0f} reports/s   {seconds:6.1f} s   peak {peak:.0f} MB")


def measure_floor(arguments: argparse.Namespace) -> None:
    """Print the rate that the cryptography alone allows on this machine now."""
    task = make_task(arguments.vdaf, NOBODY, NOBODY).helper
    keypair = HpkeKeypair.generate(1, *SUITE)
    cores = os.cpu_count() or 1
    load = prepare(task, HpkeConfig(*keypair.config), 20 * cores, arguments.job_size)
    rate = floor(load, keypair, cores)
    print(f"floor  {rate:10,.0f} reports/s   {1e6 * cores / rate:6.1f} us of a core per report")


def main() -> None:
    """Run the benchmark."""
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
