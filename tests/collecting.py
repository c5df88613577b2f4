"""A Leader with aggregated batches, and the real Helper's answer to its AggregateShareReq.

Reports go through the real extension on both sides; only the aggregation exchange is left out.
"""

from __future__ import annotations

import secrets
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

from dapd.commits.aggregate_share import ShareRequest, serve_aggregate_share
from dapd.commits.collections import create_collection
from dapd.config import Config, Leader
from dapd.config import Datastore as DatastoreConfig
from dapd.config import Disk as DiskConfig
from dapd.crypto import Keyring
from dapd.datastore import Datastore, Tx, batches, chunks, collections, leases, outstanding
from dapd.datastore.chunks import Place
from dapd.datastore.collections import CollectionJob
from dapd.datastore.leases import Lease
from dapd.messages.aggregation import AggregationJobInitHead
from dapd.messages.collection import (
    AggregateShareAad,
    AggregateShareReq,
    CollectionJobReq,
    CollectionJobResp,
    Query,
)
from dapd.messages.common import BatchMode, HpkeCiphertext, Interval, MediaType, Role
from dapd.messages.task import TaskConfiguration
from dapd.protocol.batches import time_bucket
from dapd.protocol.task import Instant, Task
from dapd.reports import HelperJob, leader_finish
from dapd.runtime.context import Context
from dapd.vdaf import unshard
from tests import build
from tests.build import ANY_TIME, NOW, TIME, Pair
from tests.peer import Request, answer

KEEP_MS = 3_600_000
QUERY = CollectionJobReq(Query(Interval(TIME, 1)))
NEXT_BATCH = CollectionJobReq(Query(None))


def interval_query(start: int, duration: int) -> CollectionJobReq:
    return CollectionJobReq(Query(Interval(start, duration)))


@dataclass
class HandClock:
    """A clock that only the test moves; milliseconds."""

    at: int = NOW

    def now(self) -> int:
        return self.at

    def elapsed(self) -> int:
        return self.at

    def instant(self) -> Instant:
        return Instant(self.at, self.at)


@dataclass
class Aggregators:
    """Both Aggregators of one task, each with a datastore of its own."""

    pair: Pair
    leader: Task
    helper: Task
    store: Datastore
    helper_store: Datastore
    seq: int = 0
    clock: HandClock = field(default_factory=HandClock)

    def upload(self, n: int, *, time: int = TIME) -> int:
        """A waiting chunk of ``n`` reports; its ``seq``. The rows are not looked at here."""
        bucket = time_bucket(time) if self.leader.by_time else b""
        self.seq += 1
        place = Place(self.leader.task_pk, self.seq, bucket, NOW)
        chunk = (n, time, time, build.report_ids(n), bytes(4 * n), b"")
        self.store.run_sync(chunks.insert, place, chunk)
        self.store.run_sync(collections.touch, self.leader.task_pk, self.clock.at)
        return self.seq

    def decide(self, *seqs: int) -> None:
        """The chunks are aggregated or rejected."""

        def decide(tx: Tx) -> None:
            for seq in seqs:
                tx.execute("UPDATE report_chunks SET state = 'decided' WHERE seq = :seq", seq=seq)
            collections.touch(tx, self.leader.task_pk, self.clock.at)

        self.store.run_sync(decide)

    def aggregate(
        self, measurements: Sequence[int], *, time: int = TIME, batch_id: bytes | None = None
    ) -> None:
        """Verify, and commit to the buckets on both sides."""
        pair = self.pair
        reports = build.make_reports(pair, measurements, times=[time] * len(measurements))
        job = build.leader_job(pair, reports, batch_id=batch_id)
        _, offset = AggregationJobInitHead.decode(job.body)
        verified = HelperJob(job.body, offset).verify(
            pair.helper.parameters,
            ANY_TIME,
            Keyring([pair.helper_key]),
            pair.sealer,
            job.job_id,
            batch_id,
            bytes(len(measurements)),
        )
        helper = verified.finish([], bytes(len(measurements)))
        leader = leader_finish(
            pair.leader.parameters, pair.sealer, job.job_id, batch_id, job.state, helper.response
        )
        for store, task, totals in (
            (self.store, self.leader, leader.buckets),
            (self.helper_store, self.helper, helper.buckets),
        ):
            store.run_sync(batches.add_contributions, task.task_pk, job.job_id, totals)
        self.store.run_sync(collections.touch, self.leader.task_pk, self.clock.at)

    def open_batch(self) -> bytes:
        """A new leader-selected batch; its id."""
        batch_id = secrets.token_bytes(32)
        self.store.run_sync(outstanding.insert, self.leader.task_pk, batch_id)
        return batch_id

    def query(self, request: CollectionJobReq) -> CollectionJob:
        """What a POST of this request gives. Raises ``Abort``."""
        return self.query_bytes(request.encode())

    def query_bytes(self, body: bytes) -> CollectionJob:
        return self.store.run_sync(
            create_collection,
            self.leader,
            body,
            secrets.token_bytes(16),
            self.clock.instant(),
            KEEP_MS,
        )

    def job(self, job: CollectionJob) -> CollectionJob:
        """The job as it is now."""
        return self.store.read_sync(collections.by_pk, job.pk)

    def lease(self, job: CollectionJob) -> Lease:
        """Lease this job, which must be due."""
        found, _ = self.store.run_sync(
            leases.lease_due,
            self.clock.at,
            lambda due: [each for each in due if each.kind == "collection" and each.pk == job.pk],
        )
        return found[0]

    def state_of(self, bucket: bytes) -> str | None:
        return self.store.read_sync(batches.bucket_state, self.leader.task_pk, bucket)

    def helper_answer(self, request: Request) -> bytes:
        """What dapd's Helper answers to an AggregateShareReq."""
        message = AggregateShareReq.decode(request.body)
        share = self.helper_store.run_sync(
            serve_aggregate_share,
            ShareRequest(
                self.helper,
                secrets.token_bytes(16),
                collections.request_hash(request.body),
                message,
            ),
            self.pair.sealer,
            Instant(NOW, NOW),
        )
        return answer(
            body=share.response,
            Content_Type=MediaType.AGGREGATE_SHARE.value,
            Location="/helper/aggregate_shares/x",
        )

    def result(
        self, request: CollectionJobReq, response: bytes
    ) -> tuple[CollectionJobResp, object]:
        """What the Collector makes of a CollectionJobResp: itself and the aggregate result."""
        resp = CollectionJobResp.decode(response)
        opened = [
            self._open(request, role, share)
            for role, share in (
                (Role.LEADER, resp.leader_encrypted_agg_share),
                (Role.HELPER, resp.helper_encrypted_agg_share),
            )
        ]
        return resp, unshard(self.leader.vdaf, opened[0], opened[1], resp.report_count)

    def _open(self, request: CollectionJobReq, role: Role, share: HpkeCiphertext) -> bytes:
        aad = AggregateShareAad(self.leader.task_id, self.leader.configuration, request).encode()
        info = b"dap-18 aggregate share" + bytes([role, 0])
        return self.pair.collector_key.open(info, aad, share.enc, share.payload)


@asynccontextmanager
async def aggregators(
    path: Path,
    *,
    mode: BatchMode = BatchMode.TIME_INTERVAL,
    min_batch_size: int = 3,
    helper_url: str = "",
) -> AsyncIterator[Aggregators]:
    """A task with its Leader and Helper in two SQLite files, closed at the end."""
    pair = build.task_pair(batch_mode=mode, min_batch_size=min_batch_size)
    if helper_url:
        pair = _served_at(pair, helper_url)
    opened = build.open_store(path / "leader.sqlite")
    helper_opened = build.open_store(path / "helper.sqlite")
    try:
        leader = build.add_task(opened.datastore, pair.leader, pair)
        helper = build.add_task(helper_opened.datastore, pair.helper, pair)
        yield Aggregators(pair, leader, helper, opened.datastore, helper_opened.datastore)
    finally:
        helper_opened.close()
        opened.close()


@asynccontextmanager
async def context_of(who: Aggregators) -> AsyncIterator[Context]:
    """A Leader's context around its datastore."""
    path = who.store.path
    config = Config(
        datastore=DatastoreConfig(path=path, sealing_keys=(path,)),
        leader=Leader(retry_min=1.0, retry_max=64.0),
        disk=DiskConfig(min_free_bytes=0),
    )
    async with build.context_around(config, who.store, who.pair.sealer, who.clock) as context:
        yield context


def _served_at(pair: Pair, helper_url: str) -> Pair:
    before: TaskConfiguration = pair.configuration
    encoded = replace(before, helper_aggregator_endpoint=helper_url + "/").encode()
    return replace(
        pair,
        leader=replace(pair.leader, configuration_bytes=encoded),
        helper=replace(pair.helper, configuration_bytes=encoded),
    )
