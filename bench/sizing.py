"""Measure what a million reports take: disk at each stage of their life, time, and memory.

    python bench/sizing.py

This runs a real Leader and a real Helper, and for each VDAF one task with reports of two days ago.
The reports are uploaded while the Leader's peer is paused, wait for the Helper in jobs, and are
then aggregated, collected and, by ``dapd task set``, expired. After each step the program reads the
pages in use from each database, subtracts those of an empty one, and scales: bytes for a million =
bytes / reports * 1,000,000. Besides, a file keeps a tenth of its pages free. The memory is that of
the daemons, which share the machine with the load, and separately that of the replay index.
"""

from __future__ import annotations

import argparse
import secrets
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path

import trio
from common import PRECISION, daemon, hpke_config, make_task, peak_megabytes
from upload import drive

from dapd.collector import Collector, Query
from dapd.http import DapHttp
from dapd.messages.common import HpkeConfig, b64url_encode
from dapd.reports import ReplayIndex, seal_reports, shard
from dapd.taskfile import ClientTask, TaskFiles, write_task_file
from dapd.vdaf import Measurement, make_vdaf

MILLION = 1_000_000
DAY = 86_400
BULK = 100
CONNECTIONS = 8
VDAFS: tuple[tuple[str, Measurement, int], ...] = (
    ("count", 1, 100_000),
    ("histogram:length=10", 3, 100_000),
    ("sumvec:length=1000,max_measurement=1", [1] * 1000, 4_000),
)
"""Each VDAF with a measurement and the number of reports."""
UNPREPARED = """
SELECT EXISTS (SELECT 1 FROM report_chunks WHERE state = 'waiting')
  OR EXISTS (SELECT 1 FROM aggregation_jobs WHERE state = 'assigned')"""
UNDECIDED = "SELECT EXISTS (SELECT 1 FROM report_chunks WHERE state <> 'decided')"
KEPT = """
SELECT EXISTS (SELECT 1 FROM report_chunks) OR EXISTS (SELECT 1 FROM aggregation_jobs)
  OR EXISTS (SELECT 1 FROM batch_shares)"""


@dataclass
class Side:
    """One of the two daemons: its files, its process, and by how much its database grew."""

    directory: Path
    process: subprocess.Popen[bytes]
    empty: int = 0
    grown: list[int] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.empty = self.bytes_in_use()

    def ask(self, query: str) -> int:
        """Read one number from the database, through SQLite (rule E5)."""
        path = self.directory / "state" / "dapd.sqlite"
        with closing(sqlite3.connect(path)) as connection:
            return int(connection.execute(query).fetchone()[0])

    def bytes_in_use(self) -> int:
        """Return the size of the pages in use."""
        pages = self.ask("PRAGMA page_count") - self.ask("PRAGMA freelist_count")
        return pages * self.ask("PRAGMA page_size")

    def command(self, *arguments: str) -> None:
        """Run a command as an operator does while the daemon runs."""
        command = [sys.executable, "-m", "dapd", "--config", str(self.directory / "dapd.toml")]
        subprocess.run([*command, *arguments], check=True, stdout=subprocess.DEVNULL)


def look(*sides: Side) -> None:
    """Record how much disk the reports take now."""
    for side in sides:
        side.grown.append(side.bytes_in_use() - side.empty)


async def until_none(query: str, *sides: Side) -> None:
    """Poll until the query returns 0 on each side; another process gives no event to wait for."""
    for side in sides:
        while side.ask(query):  # noqa: ASYNC110
            await trio.sleep(0.2)


def make_reports(
    task: ClientTask, keys: Sequence[HpkeConfig], measurement: Measurement, count: int
) -> list[bytes]:
    """Return bodies of upload requests with reports of two days ago."""
    configuration = task.configuration
    ids = secrets.token_bytes(16 * count)
    measurements = [measurement] * count
    columns = shard(make_vdaf(configuration.vdaf), task.task_id, measurements, ids)  # type: ignore[arg-type] # all alike
    leader, helper = (key.as_tuple for key in keys)
    times = [hour() // PRECISION] * count
    encoded = configuration.encode()
    reports = seal_reports(task.task_id, encoded, leader, helper, ids, times, *columns)
    return [b"".join(reports[at : at + BULK]) for at in range(0, count, BULK)]


def hour() -> int:
    """Return the time of the reports, in seconds."""
    return int(time.time()) // DAY * DAY - 2 * DAY


async def collect(directory: Path, files: TaskFiles, count: int) -> None:
    """Collect the only batch, and require its report count to be exact."""
    file = directory / "collector.toml"
    write_task_file(file, files.collector)
    query = Query.interval(hour(), PRECISION)
    async with Collector(file) as collector, collector.collect(query) as result:
        if result.report_count != count:
            raise RuntimeError(f"{result.report_count} reports collected, not {count}")


async def live(
    leader: Side, helper: Side, files: TaskFiles, bodies: list[bytes], port: int
) -> dict[str, float]:
    """Take the reports from upload to expiry, recording the disk after each step.

    Return the seconds that the first two steps took.
    """
    helper_url, task_id = f"http://127.0.0.1:{port + 1}/", b64url_encode(files.client.task_id)
    leader.command("peer", "pause", helper_url)
    uploading = await drive(port, f"/tasks/{task_id}/reports", bodies, CONNECTIONS)
    await until_none(UNPREPARED, leader)
    look(leader, helper)
    leader.command("peer", "resume", helper_url)
    resumed = time.perf_counter()
    await until_none(UNDECIDED, leader)
    aggregating = time.perf_counter() - resumed
    look(leader, helper)
    await collect(leader.directory, files, len(bodies) * BULK)
    look(leader, helper)
    for side in (leader, helper):
        side.command("task", "set", "--report-expiry-age", str(DAY), "--", task_id)
    await until_none(KEPT, leader, helper)
    look(leader, helper)
    return {"upload": uploading, "aggregation": aggregating}


async def measure(vdaf: str, measurement: Measurement, count: int, port: int) -> None:
    """Measure one VDAF and print its lines."""
    urls = [f"http://127.0.0.1:{port + offset}/" for offset in (0, 1)]
    files = make_task(vdaf, *urls)
    with (
        tempfile.TemporaryDirectory(prefix="dapd-bench-") as name,
        daemon(Path(name, "helper"), "helper", port + 1, files.helper, prepare=often) as helping,
        daemon(Path(name, "leader"), "leader", port, files.leader, prepare=often) as leading,
    ):
        async with DapHttp() as http:
            keys = [await hpke_config(http, f"{url}hpke_config") for url in urls]
        bodies = await trio.to_thread.run_sync(make_reports, files.client, keys, measurement, count)
        leader, helper = Side(Path(name, "leader"), leading), Side(Path(name, "helper"), helping)
        seconds = await live(leader, helper, files, bodies, port)
        scale = MILLION / count
        print(f"\n{vdaf}: {count:,} reports")
        print(f"{'MB for a million':24}{'Leader':>10}{'Helper':>10}")
        stages = ("waiting for the Helper", "aggregated", "collected", "expired")
        for stage, ours, theirs in zip(stages, leader.grown, helper.grown, strict=True):
            print(f"{stage:24}{ours * scale / 1e6:10,.0f}{theirs * scale / 1e6:10,.0f}")
        peaks = [peak_megabytes(side.process) for side in (leader, helper)]
        print(f"{'peak memory, MB':24}{peaks[0]:10,.0f}{peaks[1]:10,.0f}")
        for what, spent in seconds.items():
            print(f"{what}: {spent * scale:,.0f} s for a million")


def often(directory: Path) -> None:
    """Let the garbage collector run every second, so that the benchmark needn't wait for it."""
    with (directory / "dapd.toml").open("a") as config:
        config.write("\n[gc]\ninterval = 1.0\n")


def resident() -> int:
    """Return this process's resident memory in bytes."""
    line = next(
        line for line in Path("/proc/self/status").read_text().splitlines() if "VmRSS" in line
    )
    return int(line.split()[1]) * 1024


def measure_index(count: int) -> None:
    """Measure the memory of the replay index, which is the same for all VDAFs."""
    index, before = ReplayIndex(), resident()
    for _ in range(count // 1000):
        index.load(1, secrets.token_bytes(16 * 1000))
    print(f"\nknown report ids: {(resident() - before) / len(index):.1f} bytes of memory each")


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--share", type=float, default=1.0, help="of the usual number of reports")
    parser.add_argument("--ids", type=int, default=3 * MILLION)
    parser.add_argument("--port", type=int, default=18100)
    arguments = parser.parse_args()
    measure_index(arguments.ids)
    for vdaf, measurement, count in VDAFS:
        reports = round(count * arguments.share / BULK) * BULK
        trio.run(measure, vdaf, measurement, reports, arguments.port)


if __name__ == "__main__":
    main()
