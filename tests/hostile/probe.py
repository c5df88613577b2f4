"""Hostile requests to a running pair: bodies nearly right, how they are sent, what they leave."""

from __future__ import annotations

import http.client
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

from dapd.datastore import Tx
from dapd.messages.aggregation import AggregationJobContinueHead
from dapd.messages.collection import AggregateShareReq, BatchSelector, CollectionJobReq, Query
from dapd.messages.common import CHECKSUM_SIZE, Interval, MediaType
from dapd.testing.pair import Aggregator
from tests.clock import TIME
from tests.pair_harness import TaskHarness

PROFILE = settings(
    max_examples=250,
    derandomize=True,
    database=None,
    deadline=None,
    suppress_health_check=list(HealthCheck),
)
"""The same requests in every run."""
STILL: dict[str, dict[str, dict[str, Any]]] = {
    "leader": {
        "leader": {"max_wait": 3600.0, "min_job_size": 100_000, "max_job_size": 100_000},
        "collection": {"poll_hold": 0.0},
    },
    "helper": {"helper": {"mode": "sync"}},
}
"""Nothing happens but what a request does, so that what it leaves can be seen."""
_MOVING = {"run_at", "lease_token", "lease_until", "attempts"}
_COUNTED = {"task_counters", "upload_groups"}

Rows = dict[str, list[dict[str, Any]]]


@dataclass(frozen=True)
class Target:
    """A route that takes a body: where, as what, with whose token, and one that it takes."""

    side: Aggregator
    path: str
    content: MediaType
    token: str
    seed: bytes


def targets(hands: TaskHarness, job_path: str) -> dict[str, Target]:
    """Every route that takes a body. ``job_path`` is that of an aggregation job that exists."""
    files, pair = hands.task.files, hands.pair
    tasks = f"/tasks/{hands.id_text}/"
    theirs, ours = files.collector.collector_auth_token, files.leader.aggregator_auth_token
    asked = CollectionJobReq(Query(Interval(TIME + 10, 1)))
    share = AggregateShareReq(
        asked, BatchSelector(Interval(TIME + 10, 1)), 2, bytes(CHECKSUM_SIZE)
    ).encode()
    job = hands.start_job(hands.seal([1, 0], "job")).request
    return {
        "reports": Target(
            pair.leader,
            tasks + "reports",
            MediaType.UPLOAD_REQ,
            "",
            b"".join(hands.seal([1, 0], "upload")),
        ),
        "collection_jobs": Target(
            pair.leader,
            tasks + "collection_jobs",
            MediaType.COLLECTION_JOB_REQ,
            theirs,
            asked.encode(),
        ),
        "aggregation_jobs": Target(
            pair.helper, tasks + "aggregation_jobs", MediaType.AGGREGATION_JOB_INIT_REQ, ours, job
        ),
        "continuation": Target(
            pair.helper,
            job_path,
            MediaType.AGGREGATION_JOB_CONTINUE_REQ,
            ours,
            AggregationJobContinueHead(1).encode() + bytes(20),
        ),
        "aggregate_shares": Target(
            pair.helper, tasks + "aggregate_shares", MediaType.AGGREGATE_SHARE_REQ, ours, share
        ),
    }


@dataclass
class Wire:
    """Requests to one side from a plain thread, on one connection while it lasts."""

    port: int
    connection: http.client.HTTPConnection

    def ask(
        self, method: str, path: str, headers: dict[str, str], body: bytes = b""
    ) -> tuple[int, bytes]:
        """Status and content."""
        self.connection.request(method, path, body, headers)
        answer = self.connection.getresponse()
        return answer.status, answer.read()

    def post(self, target: Target, body: bytes) -> tuple[int, bytes]:
        headers = {"Content-Type": target.content.value, "DAP-Auth-Token": target.token}
        return self.ask("POST", target.path, headers, body)


@contextmanager
def wire_to(side: Aggregator) -> Iterator[Wire]:
    """A connection that is opened again whenever the server closes it."""
    connection = http.client.HTTPConnection("127.0.0.1", side.port, timeout=60)
    try:
        yield Wire(side.port, connection)
    finally:
        connection.close()


def everything(side: Aggregator) -> Rows:
    """All rows of all tables, but for the columns that go on by themselves."""

    def dump(tx: Tx) -> Rows:
        tables = [name for (name,) in tx.all("SELECT name FROM sqlite_master WHERE type = 'table'")]
        found: Rows = {}
        for table in tables:
            columns = [row[1] for row in tx.all(f"PRAGMA table_info({table})")]
            raw = tx.all(f"SELECT * FROM {table}")  # noqa: S608 - a name from the schema
            rows = [dict(zip(columns, row, strict=True)) for row in raw]
            found[table] = [{k: v for k, v in row.items() if k not in _MOVING} for row in rows]
        return found

    return side.context.datastore.read_sync(dump)


def but_for_counts(rows: Rows) -> Rows:
    """What a request of reports that are all rejected may not change: all but the counters."""
    return {
        table: content
        for table, content in rows.items()
        if table not in _COUNTED and table != "sqlite_sequence"
    }


_EDITS = st.tuples(
    st.sampled_from(["flip", "cut", "insert", "repeat", "ones", "zeros", "end"]),
    st.floats(0, 1, exclude_max=True),
    st.integers(1, 40),
)


def spoilt(seed: bytes) -> st.SearchStrategy[bytes]:
    """Random bytes, or ``seed`` with up to four places damaged."""
    damaged = st.lists(_EDITS, min_size=1, max_size=4).map(lambda edits: _edited(seed, edits))
    return st.one_of(damaged, damaged, damaged, st.binary(max_size=200))


def _edited(body: bytes, edits: list[tuple[str, float, int]]) -> bytes:
    for kind, place, size in edits:
        at = int(place * len(body))
        head, here, tail = body[:at], body[at : at + size], body[at + size :]
        match kind:
            case "flip":
                body = head + bytes(byte ^ size for byte in here[:1]) + here[1:] + tail
            case "cut":
                body = head + tail
            case "insert":
                body = head + bytes([size]) * size + here + tail
            case "repeat":
                body = head + here + here + tail
            case "ones":
                body = head + b"\xff" * len(here) + tail
            case "zeros":
                body = head + bytes(len(here)) + tail
            case _:
                body = head
    return body


def ones_everywhere(seed: bytes) -> Iterator[bytes]:
    """Each two and each four bytes in turn as great as they can be: among them, every length."""
    for width in (2, 4):
        for at in range(len(seed) - width + 1):
            yield seed[:at] + b"\xff" * width + seed[at + width :]
