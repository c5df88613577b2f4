"""The databases of a Leader and a Helper, with batches that were aggregated without an exchange.

Reports go through the real extension on both sides; no daemon runs.
"""

from __future__ import annotations

import secrets
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

from dapd.commits.aggregate_share import ShareRequest, serve_aggregate_share
from dapd.commits.batch_total import batch_total
from dapd.commits.collections import (
    CollectionRequest,
    Failed,
    advance_collection,
    create_collection,
    freeze_collection,
)
from dapd.config import Config, Leader
from dapd.config import Datastore as DatastoreConfig
from dapd.config import Disk as DiskConfig
from dapd.datastore import Datastore, Tx, batches, chunks, collections, leases, outstanding
from dapd.datastore.chunks import Place
from dapd.datastore.collections import CollectionJob
from dapd.datastore.leases import Lease
from dapd.datastore.share_jobs import StoredShare
from dapd.driver.collection import frozen_batch
from dapd.messages.collection import (
    AggregateShareAad,
    AggregateShareReq,
    BatchSelector,
    CollectionJobReq,
    CollectionJobResp,
    Query,
)
from dapd.messages.common import BatchMode, HpkeCiphertext, Interval, MediaType, Role
from dapd.protocol.batches import BucketRange, batch_id_range, time_bucket
from dapd.protocol.collect import Freeze, Move
from dapd.protocol.task import Task
from dapd.runtime.context import Context
from dapd.vdaf import unshard
from tests.clock import NOW, TIME, ManualClock
from tests.contexts import add_task, context_around, open_store
from tests.raw_http import Request, answer
from tests.task_pair import TaskPair, leader_job, make_reports, report_ids, task_pair

KEEP_MS = 3_600_000
LOOK_AGAIN_MS = 60_000
QUERY = CollectionJobReq(Query(Interval(TIME, 1)))
NEXT_BATCH = CollectionJobReq(Query(None))


def interval_query(start: int, duration: int) -> CollectionJobReq:
    return CollectionJobReq(Query(Interval(start, duration)))


@dataclass
class DatabasePair:
    """Both Aggregators of one task, each with a database of its own."""

    pair: TaskPair
    leader: Task
    helper: Task
    store: Datastore
    helper_store: Datastore
    seq: int = 0
    clock: ManualClock = field(default_factory=ManualClock)

    def upload(self, n: int, *, time: int = TIME) -> int:
        """Store a waiting chunk of ``n`` reports, whose rows are no reports; its ``seq``."""
        bucket = time_bucket(time) if self.leader.by_time else b""
        self.seq += 1
        place = Place(self.leader.task_pk, self.seq, bucket, NOW)
        chunk = (n, time, time, report_ids(n), bytes(4 * n), b"")
        self.store.run_sync(chunks.insert, place, chunk)
        self.store.run_sync(collections.touch, self.leader.task_pk, self.clock.now())
        return self.seq

    def decide(self, *seqs: int) -> None:
        """Record that the reports of these chunks were aggregated or rejected."""

        def decide(tx: Tx) -> None:
            for seq in seqs:
                tx.execute("UPDATE report_chunks SET state = 'decided' WHERE seq = :seq", seq=seq)
            collections.touch(tx, self.leader.task_pk, self.clock.now())

        self.store.run_sync(decide)

    def aggregate(
        self, measurements: Sequence[int], *, time: int = TIME, batch_id: bytes | None = None
    ) -> None:
        """Add verified reports to the buckets on both sides."""
        reports = make_reports(self.pair, measurements, times=[time] * len(measurements))
        job = leader_job(self.pair, reports, batch_id=batch_id)
        helper = self.pair.help(job.start.verify_inits, job_id=job.job_id, batch_id=batch_id)
        leader = job.lead(helper.response)
        for store, task, totals in (
            (self.store, self.leader, leader.buckets),
            (self.helper_store, self.helper, helper.buckets),
        ):
            store.run_sync(batches.add_contributions, task.task_pk, job.job_id, totals)
        self.store.run_sync(collections.touch, self.leader.task_pk, self.clock.now())

    def open_batch(self) -> bytes:
        """A new leader-selected batch; its id."""
        batch_id = secrets.token_bytes(32)
        self.store.run_sync(outstanding.insert, self.leader.task_pk, batch_id)
        return batch_id

    def query(self, request: CollectionJobReq) -> CollectionJob:
        """The job that a POST of this request makes or finds. Raises ``Abort``."""
        return self.query_bytes(request.encode())

    def query_bytes(self, body: bytes) -> CollectionJob:
        return self.store.run_sync(
            create_collection,
            CollectionRequest(self.leader, secrets.token_bytes(16), body),
            self.pair.sealer,
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
            self.clock.now(),
            lambda due: [each for each in due if each.kind == "collection" and each.pk == job.pk],
        )
        return found[0]

    def advance(self, job: CollectionJob) -> Move | Failed | None:
        """Make the next move of this job, which must be due."""
        return self._advance(self.lease(job))

    def freeze(self, job: CollectionJob) -> Lease:
        """Freeze this job, whose batch must be complete; the lease that still holds it."""
        lease = self.lease(job)
        move = self._advance(lease)
        assert isinstance(move, Freeze), move
        total = self.store.read_sync(batch_total, self.leader, self.pair.sealer, move.batch)
        batch = frozen_batch(self.leader, self.pair.sealer, self.job(job), move.batch, total)
        assert self.store.run_sync(
            freeze_collection, lease, self.leader, batch, total.extent, self.clock.instant()
        )
        return lease

    def _advance(self, lease: Lease) -> Move | Failed | None:
        at = self.clock.instant()
        return self.store.run_sync(
            advance_collection, lease, self.leader, at, at.now + LOOK_AGAIN_MS
        )

    def state_of(self, bucket: bytes) -> str | None:
        return self.store.read_sync(batches.bucket_state, self.leader.task_pk, bucket)

    def share_request(
        self, selected: Interval | bytes, query: Interval | None = None
    ) -> AggregateShareReq:
        """An honest Leader's request for the batch ``selected``, by default by its own query."""
        if isinstance(selected, Interval):
            query = query or selected
            batch = BucketRange(time_bucket(selected.start), time_bucket(selected.end))
        else:
            batch = batch_id_range(selected)
        total = self.store.read_sync(batch_total, self.leader, self.pair.sealer, batch)
        return AggregateShareReq(
            CollectionJobReq(Query(query)), BatchSelector(selected), total.n, total.checksum
        )

    def serve(self, body: bytes) -> StoredShare:
        """The share that the Helper makes or finds for an AggregateShareReq. Raises ``Abort``."""
        request = ShareRequest(
            self.helper,
            secrets.token_bytes(16),
            collections.request_hash(body),
            AggregateShareReq.decode(body),
        )
        return self.helper_store.run_sync(
            serve_aggregate_share, request, self.pair.sealer, self.clock.instant()
        )

    def helper_answer(self, request: Request) -> bytes:
        """What dapd's Helper answers to an AggregateShareReq."""
        return answer(
            body=self.serve(request.body).response,
            Content_Type=MediaType.AGGREGATE_SHARE.value,
            Location="/helper/aggregate_shares/x",
        )

    def result(
        self, request: CollectionJobReq, response: bytes
    ) -> tuple[CollectionJobResp, object]:
        """The parsed CollectionJobResp, and the aggregate result that the Collector finds in it."""
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
async def open_databases(
    path: Path,
    *,
    mode: BatchMode = BatchMode.TIME_INTERVAL,
    min_batch_size: int = 3,
    helper_url: str = "",
) -> AsyncIterator[DatabasePair]:
    """A task with its Leader and Helper in two SQLite files, closed at the end."""
    pair = task_pair(batch_mode=mode, min_batch_size=min_batch_size)
    if helper_url:
        pair = pair.at(f"{helper_url}/")
    opened = open_store(path / "leader.sqlite")
    helper_opened = open_store(path / "helper.sqlite")
    try:
        leader = add_task(opened.datastore, pair.leader, pair)
        helper = add_task(helper_opened.datastore, pair.helper, pair)
        yield DatabasePair(pair, leader, helper, opened.datastore, helper_opened.datastore)
    finally:
        helper_opened.close()
        opened.close()


@asynccontextmanager
async def leader_context(databases: DatabasePair) -> AsyncIterator[Context]:
    """The ``Context`` of the Leader."""
    path = databases.store.path
    config = Config(
        datastore=DatastoreConfig(path=path, sealing_keys=(path,)),
        leader=Leader(retry_min=1.0, retry_max=64.0),
        disk=DiskConfig(min_free_bytes=0),
    )
    async with context_around(
        config, databases.store, databases.pair.sealer, databases.clock
    ) as context:
        yield context
