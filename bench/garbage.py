"""Measure the latency of uploads without the garbage collector, and while it runs.

    python bench/garbage.py

A real Leader starts on a database full of old reports: some that wait with all their rows, many
that are aggregated, with their jobs and contributions. Single uploads arrive at a steady rate, each
timed from the moment it was due. Then ``dapd task set`` makes a part of the old reports expire, and
the same uploads continue until those are deleted and their space is returned. Several such rounds
even out other load on the machine. dapd promises that the 99th percentile at most doubles. The load
generator and the daemon share the machine.
"""

from __future__ import annotations

import argparse
import secrets
import sqlite3
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import trio
from common import PRECISION, Connection, daemon, hpke_config, make_task, peak_megabytes
from upload import prepare

from dapd.datastore import Tx, open_for_command
from dapd.datastore.sqlite import Pages
from dapd.gc.space import surplus
from dapd.http import DapHttp
from dapd.messages.common import MediaType, b64url_encode
from dapd.protocol.batches import time_bucket

DAY = 86_400
AGE = 10 * DAY
"""The least age of the backlog. The task's reports first expire after four weeks; each round makes
reports expire that are a day older than those of the next round.
"""
ROW_BYTES = 250
PER_CHUNK = 100
A_TRANSACTION = 500

WAITING = """
INSERT INTO report_chunks (task_pk, seq, bucket, n, time_min, time_max, state, run_at, ids)
VALUES (1, 1, :bucket, :n, :time, :time, 'waiting', :later, :ids)"""
ROWS = "INSERT INTO chunk_rows VALUES (last_insert_rowid(), :lengths, :rows)"
JOB = """
INSERT INTO aggregation_jobs (id, task_pk, role, state, n, bucket, run_at, newest, created_at)
VALUES (:id, 1, 'leader', 'finished', :n, x'', 0, :time, 0)"""
DECIDED = """
INSERT INTO report_chunks (task_pk, seq, bucket, n, time_min, time_max, state, job_pk, run_at, ids)
VALUES (1, 1, :bucket, :n, :time, :time, 'decided', last_insert_rowid(), 0, :ids)"""
SHARE = """
INSERT INTO batch_shares (task_pk, bucket, job_id, n, checksum, time_min, time_max, share)
VALUES (1, :bucket, :id, :n, :checksum, :time, :time, :share)"""
LEFT = """
SELECT EXISTS (SELECT 1 FROM report_chunks WHERE task_pk = 1 AND time_max < :limit)
  OR EXISTS (SELECT 1 FROM aggregation_jobs WHERE task_pk = 1 AND newest < :limit)
  OR EXISTS (SELECT 1 FROM batch_shares WHERE task_pk = 1 AND bucket < :bucket)"""
# The creator doesn't touch chunks whose wait is longer than this benchmark takes.
CONFIG = """
[leader]
retry_max = 86400.0

[gc]
interval = 1.0
"""


@dataclass
class Load:
    """Requests at a steady rate, until they are used up or ``stop`` is set."""

    port: int
    path: str
    rate: float
    bodies: Iterator[bytes]

    async def run(self, connections: int, seconds: float, stop: trio.Event) -> list[float]:
        """Send the requests; return the seconds from when each was due to its answer."""
        begin = trio.current_time()
        due = (begin + number / self.rate for number in range(int(seconds * self.rate)))
        latencies: list[float] = []

        async def client() -> None:
            connection = Connection(await trio.open_tcp_stream("127.0.0.1", self.port))
            for at in due:
                await trio.sleep_until(at)
                if stop.is_set() or (body := next(self.bodies, None)) is None:
                    return
                answer = await connection.ask("POST", self.path, MediaType.UPLOAD_REQ, body)
                latencies.append(trio.current_time() - at)
                if answer.status != 200 or answer.body:
                    raise RuntimeError(f"{answer.status}: {answer.body!r}")

        async with trio.open_nursery() as nursery:
            for _ in range(connections):
                nursery.start_soon(client)
        return latencies


def database(directory: Path) -> Path:
    """Return the path at which ``dapd init`` puts the database."""
    return directory / "state" / "dapd.sqlite"


def add_backlog(waiting: int, jobs: int, rounds: int, directory: Path) -> None:
    """Store old reports of the one task as a Leader does, those of one day for each round."""
    config = directory / "dapd.toml"
    config.write_text(f"{config.read_text()}{CONFIG}")
    opened = open_for_command(database(directory), holder="bench", now=0)
    for count, add in ((waiting, add_waiting), (jobs, add_job)):
        for first in range(0, count, A_TRANSACTION):
            rows = range(first, min(count, first + A_TRANSACTION))
            opened.datastore.run_sync(add_rows, add, rows, rounds)
    opened.close()


def add_rows(tx: Tx, add: Callable[[Tx, dict[str, object]], None], rows: range, days: int) -> None:
    """Add one transaction's part of the backlog."""
    for row in rows:
        old = (int(time.time()) - AGE) // PRECISION - row % (24 * days)
        common = {"bucket": time_bucket(old), "n": PER_CHUNK, "time": old}
        add(tx, common | {"ids": secrets.token_bytes(16 * PER_CHUNK)})


def add_waiting(tx: Tx, row: dict[str, object]) -> None:
    """Add a chunk that no job has taken, with its rows."""
    tx.execute(WAITING, **row, later=int(time.time() + DAY / 2) * 1000)
    rows = secrets.token_bytes(ROW_BYTES * PER_CHUNK)
    tx.execute(ROWS, lengths=bytes(4 * PER_CHUNK), rows=rows)


def add_job(tx: Tx, row: dict[str, object]) -> None:
    """Add a job that has ended, with its chunk and its contribution."""
    job_id = secrets.token_bytes(16)
    tx.execute(JOB, n=row["n"], time=row["time"], id=job_id)
    tx.execute(DECIDED, **row)
    del row["ids"]
    tx.execute(SHARE, **row, id=job_id, checksum=bytes(32), share=secrets.token_bytes(45))


async def wait_until_gone(directory: Path, age: int, gone: trio.Event) -> None:
    """Read the database through SQLite (rule E5) until it has nothing of this age left and its
    space is returned, then set ``gone``.
    """
    limit = (int(time.time()) - age) // PRECISION
    with closing(sqlite3.connect(database(directory), check_same_thread=False)) as connection:

        def look() -> bool:
            (left,) = connection.execute(
                LEFT, {"limit": limit, "bucket": time_bucket(limit)}
            ).fetchone()
            return not left and not surplus(pages(connection))

        # There is no event from another process to wait for.
        while not await trio.to_thread.run_sync(look):  # noqa: ASYNC110
            await trio.sleep(0.2)
    gone.set()


def pages(connection: sqlite3.Connection) -> Pages:
    """Return what ``Tx.pages`` does, for a process that has no datastore open."""
    total, free = (
        connection.execute(f"PRAGMA {name}").fetchone()[0]
        for name in ("page_count", "freelist_count")
    )
    return Pages(total, free)


def megabytes(directory: Path) -> float:
    """Return the size of the database file, without its write-ahead log."""
    return database(directory).stat().st_size / 1e6


def percentiles(name: str, latencies: list[float]) -> float:
    """Print the percentiles of ``latencies``; return the 99th, in ms."""
    latencies.sort()
    p50, p99 = (latencies[int(len(latencies) * share)] * 1000 for share in (0.5, 0.99))
    worst = latencies[-1] * 1000
    print(
        f"{name:12} p50 {p50:6.1f} ms   p99 {p99:6.1f} ms   worst {worst:6.1f} ms   "
        f"{len(latencies):,} uploads"
    )
    return p99


async def measure(arguments: argparse.Namespace) -> None:
    """Start a Leader whose Helper can't be reached; upload without the collector, then with it."""
    port, rounds = arguments.port, arguments.rounds
    url = f"http://127.0.0.1:{port}/"
    files = make_task("count", url, "http://127.0.0.1:1/")
    task_id = b64url_encode(files.client.task_id)
    backlog = partial(add_backlog, arguments.waiting, arguments.jobs, rounds)
    with (
        tempfile.TemporaryDirectory(prefix="dapd-bench-") as name,
        daemon(directory := Path(name), "leader", port, files.leader, prepare=backlog) as process,
    ):
        async with DapHttp() as http:
            key = await hpke_config(http, f"{url}hpke_config")
        count = int(arguments.rate * rounds * (arguments.seconds + arguments.longest))
        reports = await trio.to_thread.run_sync(prepare, files.client, key, count)
        load = Load(port, f"/tasks/{task_id}/reports", arguments.rate, iter(reports))
        size = megabytes(directory)
        without, collecting = list[float](), list[float]()
        for day in reversed(range(rounds)):
            without += await load.run(arguments.connections, arguments.seconds, trio.Event())
            age, gone = AGE + day * DAY - PRECISION, trio.Event()
            await expire(directory, task_id, age)
            async with trio.open_nursery() as nursery:
                nursery.start_soon(wait_until_gone, directory, age, gone)
                collecting += await load.run(arguments.connections, arguments.longest, gone)
                if not gone.is_set():
                    raise RuntimeError("the collector needs more time: raise --longest")
        before = percentiles("without", without)
        after = percentiles("collecting", collecting)
        shrunk, peak = megabytes(directory), peak_megabytes(process)
        print(f"database {size:.0f} MB, then {shrunk:.0f} MB   peak memory {peak:.0f} MB")
        print(f"the 99th percentile is {after / before:.2f} times what it was (promised: 2)")


async def expire(directory: Path, task_id: str, age: int) -> None:
    """Set the task's age as an operator does while the daemon runs."""
    command = [sys.executable, "-m", "dapd", "--config", str(directory / "dapd.toml")]
    await trio.run_process(
        [*command, "task", "set", task_id, "--report-expiry-age", str(age)], capture_stdout=True
    )


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rate", type=float, default=200.0, help="uploads per second")
    parser.add_argument("--rounds", type=int, default=6)
    parser.add_argument("--seconds", type=float, default=6.0, help="per round, without collector")
    parser.add_argument("--longest", type=float, default=30.0, help="per round, with collector")
    parser.add_argument("--connections", type=int, default=32)
    parser.add_argument("--waiting", type=int, default=4_000, help="chunks of 100 reports")
    parser.add_argument("--jobs", type=int, default=20_000, help="of 100 reports")
    parser.add_argument("--port", type=int, default=18092)
    arguments = parser.parse_args()
    print(f"count: {arguments.rate:.0f} single uploads/s")
    trio.run(measure, arguments)


if __name__ == "__main__":
    main()
