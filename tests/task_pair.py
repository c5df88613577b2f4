"""One task as both its Aggregators have it, with reports and jobs made by the real extension.

Nothing here stores or sends anything: see ``tests.contexts`` and ``tests.pair_harness``.
"""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, cast

from dapd.crypto import HpkeKeypair, Keyring, Sealer, batch_share_aad, hash_token, make_sealer
from dapd.messages.aggregation import AggregationJobInitHead, leader_selected_batch_id_extension
from dapd.messages.common import BatchMode, Extension, HpkeConfig, Interval, Role
from dapd.messages.task import (
    Prio3Count,
    TaskConfiguration,
    VdafConfiguration,
    task_interval_extension,
)
from dapd.protocol.task import END_OF_TIME, Task, TaskSettings
from dapd.reports import (
    BucketTotal,
    Extensions,
    HelperFinish,
    HelperJob,
    HelperVerified,
    LeaderFinish,
    LeaderStart,
    ReportRules,
    UploadGroup,
    leader_finish,
    leader_start,
    open_uploads,
    seal_reports,
    shard,
)
from dapd.vdaf import Measurement, Vdaf, merge, unshard
from tests.clock import PRECISION, TIME

if TYPE_CHECKING:
    from dapd._native import HpkeConfigTuple
    from dapd.reports import Chunk

X25519 = (0x0020, 0x0001, 0x0001)
"""The HPKE suite of all keys here: KEM, KDF and AEAD."""
AGGREGATOR_TOKEN = "aggregator-token"
COLLECTOR_TOKEN = "collector-token"
SEALING_KEY = bytes(range(32))
JOB, BATCH = bytes([7]) * 16, bytes([8]) * 32
ANY_TIME = ReportRules(
    too_early_after=END_OF_TIME, task_start=0, task_end=END_OF_TIME, expired_before=0
)
Spoil = Mapping[str, Callable[[bytes], bytes]]
"""What to do to the "public", "leader" or "helper" share of each report before it is sealed."""


def report_ids(count: int) -> bytes:
    """Random report ids."""
    return secrets.token_bytes(16 * count)


def make_ids(count: int, label: str = "") -> bytes:
    """Report ids that are the same in every run."""
    return b"".join(hashlib.sha256(f"{label} {n}".encode()).digest()[:16] for n in range(count))


def flip(data: bytes, at: int = 0) -> bytes:
    """The bytes with one bit changed."""
    at %= len(data)
    return data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :]


@dataclass(frozen=True)
class CraftingClient:
    """A Client of one task that seals whatever a test wants, also what no honest one would."""

    vdaf: Vdaf
    task_id: bytes
    configuration: bytes
    leader: HpkeConfigTuple
    helper: HpkeConfigTuple

    def seal(
        self,
        measurements: Sequence[Measurement],
        ids: bytes,
        times: Sequence[int],
        *,
        public: Extensions = (),
        leader: Extensions = (),
        helper: Extensions = (),
        spoil: Spoil | None = None,
    ) -> list[bytes]:
        """Encoded ``Report``s with these extensions."""
        columns = shard(self.vdaf, self.task_id, cast("Sequence[int]", measurements), ids)
        shares = [
            [(spoil or {}).get(name, bytes)(share) for share in column]
            for name, column in zip(("public", "leader", "helper"), columns, strict=True)
        ]
        return seal_reports(
            self.task_id,
            self.configuration,
            self.leader,
            self.helper,
            ids,
            times,
            *shares,
            public_extensions=public,
            leader_extensions=leader,
            helper_extensions=helper,
        )


@dataclass(frozen=True)
class TaskPair:
    """One task as both Aggregators have it, and the keys of all its parties.

    ``rules`` are what both Aggregators judge reports by unless a method gets others.
    """

    leader: Task
    helper: Task
    leader_key: HpkeKeypair
    helper_key: HpkeKeypair
    collector_key: HpkeKeypair
    sealer: Sealer
    rules: ReportRules = ANY_TIME

    @property
    def configuration(self) -> TaskConfiguration:
        return self.leader.configuration

    @property
    def client(self) -> CraftingClient:
        return CraftingClient(
            self.leader.vdaf,
            self.leader.task_id,
            self.leader.configuration_bytes,
            self.leader_key.config,
            self.helper_key.config,
        )

    def at(self, helper_url: str) -> TaskPair:
        """The same task with its Helper at ``helper_url``."""
        moved = replace(self.configuration, helper_aggregator_endpoint=helper_url).encode()
        return replace(
            self,
            leader=replace(self.leader, configuration_bytes=moved),
            helper=replace(self.helper, configuration_bytes=moved),
        )

    def open(self, *bodies: bytes, rules: ReportRules | None = None) -> UploadGroup:
        """What the Leader makes of upload requests with these bodies."""
        requests = [(self.leader.parameters, rules or self.rules, body) for body in bodies]
        return open_uploads(requests, Keyring([self.leader_key]), self.sealer)

    def chunks(self, reports: Sequence[bytes], max_rows: int = 1000) -> list[Chunk]:
        """What the Leader stores of an upload of these reports, of which it must refuse none."""
        parts = self.open(b"".join(reports)).parts
        assert sum(part.count for part in parts) == len(reports)
        return [chunk for part in parts for chunk in part.chunks(bytes(part.count), max_rows)]

    def start(
        self,
        reports: Sequence[bytes],
        *,
        rules: ReportRules | None = None,
        job_id: bytes = JOB,
    ) -> LeaderStart:
        """The Leader's first step of one aggregation job over these reports."""
        columns = [chunk[3:] for chunk in self.chunks(reports)]
        return leader_start(
            self.leader.parameters, rules or self.rules, self.sealer, job_id, columns
        )

    def verify(
        self,
        verify_inits: bytes,
        known: bytes | None = None,
        *,
        rules: ReportRules | None = None,
        job_id: bytes = JOB,
        batch_id: bytes | None = None,
    ) -> HelperVerified:
        """The Helper's work before its transaction."""
        job = HelperJob(b"head" + verify_inits, 4)
        return job.verify(
            self.helper.parameters,
            rules or self.rules,
            Keyring([self.helper_key]),
            self.sealer,
            job_id,
            self._batch(batch_id),
            bytes(job.count) if known is None else known,
        )

    def help(
        self,
        verify_inits: bytes,
        *,
        rules: ReportRules | None = None,
        job_id: bytes = JOB,
        batch_id: bytes | None = None,
    ) -> HelperFinish:
        """The Helper's whole job, where nothing was replayed or collected."""
        verified = self.verify(verify_inits, rules=rules, job_id=job_id, batch_id=batch_id)
        return verified.finish([], bytes(len(verified.candidates([])) // 16))

    def lead(
        self,
        state: bytes,
        response: bytes,
        *,
        job_id: bytes = JOB,
        batch_id: bytes | None = None,
    ) -> LeaderFinish:
        """The Leader's last step, from the state of its first one and the Helper's response."""
        return leader_finish(
            self.leader.parameters, self.sealer, job_id, self._batch(batch_id), state, response
        )

    def totals(
        self, buckets: Sequence[BucketTotal]
    ) -> list[tuple[bytes, int, bytes, int, int, bytes]]:
        """The totals of a job ``JOB`` with their shares unsealed."""
        return [
            (b.bucket, b.count, b.checksum, b.time_min, b.time_max, self._unseal(b))
            for b in buckets
        ]

    def collect(self, leader: LeaderFinish, helper: HelperFinish) -> object:
        """What the Collector gets of a job ``JOB``."""
        shares = [merge(self.leader.vdaf, map(self._unseal, s.buckets)) for s in (leader, helper)]
        count = sum(bucket.count for bucket in leader.buckets)
        return unshard(self.leader.vdaf, shares[0], shares[1], count)

    def _unseal(self, total: BucketTotal) -> bytes:
        aad = batch_share_aad(self.leader.task_id, JOB, total.bucket)
        return self.sealer.open(aad, total.share)

    def _batch(self, batch_id: bytes | None) -> bytes | None:
        return None if self.leader.by_time else batch_id or BATCH


def task_pair(
    vdaf: VdafConfiguration | None = None,
    *,
    batch_mode: BatchMode = BatchMode.TIME_INTERVAL,
    min_batch_size: int = 1,
    task_interval: Interval | None = None,
    settings: TaskSettings | None = None,
    rules: ReportRules = ANY_TIME,
) -> TaskPair:
    """A new task; its ``task_pk`` is 0 until ``add_task`` stores it."""
    configuration = TaskConfiguration(
        task_info=b"test",
        leader_aggregator_endpoint="http://127.0.0.1:1/leader/",
        helper_aggregator_endpoint="http://127.0.0.1:2/helper/",
        time_precision=PRECISION,
        min_batch_size=min_batch_size,
        batch_mode=batch_mode,
        vdaf=vdaf if vdaf is not None else Prio3Count(),
        extensions=(task_interval_extension(task_interval),) if task_interval else (),
    )
    collector_key = HpkeKeypair.generate(9, *X25519)
    leader = Task(
        task_pk=0,
        task_id=secrets.token_bytes(32),
        role=Role.LEADER,
        configuration_bytes=configuration.encode(),
        verify_key=secrets.token_bytes(32),
        verification_key_id=0,
        collector_hpke_config=HpkeConfig(*collector_key.config),
        aggregator_token=AGGREGATOR_TOKEN,
        inbound_token_hashes=(hash_token(COLLECTOR_TOKEN),),
        settings=settings or TaskSettings(),
    )
    helper = replace(
        leader,
        role=Role.HELPER,
        aggregator_token=None,
        inbound_token_hashes=(hash_token(AGGREGATOR_TOKEN),),
    )
    return TaskPair(
        leader,
        helper,
        HpkeKeypair.generate(1, *X25519),
        HpkeKeypair.generate(2, *X25519),
        collector_key,
        make_sealer([SEALING_KEY]),
        rules,
    )


def make_reports(
    pair: TaskPair,
    measurements: Sequence[Measurement],
    *,
    ids: bytes | None = None,
    times: Sequence[int] | None = None,
    tamper_with: Sequence[int] = (),
) -> list[bytes]:
    """Encoded ``Report``s, all at ``TIME`` unless ``times`` says otherwise.

    The proofs of the rows in ``tamper_with`` fail.
    """
    ids = ids if ids is not None else report_ids(len(measurements))
    times = times if times is not None else [TIME] * len(measurements)
    reports = []
    for row, measurement in enumerate(measurements):
        spoil = {"helper": flip} if row in tamper_with else None
        report_id = ids[16 * row : 16 * row + 16]
        reports += pair.client.seal([measurement], report_id, [times[row]], spoil=spoil)
    return reports


@dataclass(frozen=True)
class LeaderJob:
    """A Leader's aggregation job as it is sent: ``body`` is the ``AggregationJobInitReq``."""

    pair: TaskPair
    job_id: bytes
    batch_id: bytes | None
    start: LeaderStart
    head: AggregationJobInitHead

    @property
    def body(self) -> bytes:
        return self.head.encode() + self.start.verify_inits

    def lead(self, response: bytes) -> LeaderFinish:
        """What the Leader makes of the Helper's response."""
        return self.pair.lead(
            self.start.state, response, job_id=self.job_id, batch_id=self.batch_id
        )

    def finish(self, response: bytes) -> bytes:
        """The outcomes that the Leader takes from the Helper's response."""
        return self.lead(response).outcomes


def leader_job(
    pair: TaskPair,
    reports: Sequence[bytes],
    *,
    batch_id: bytes | None = None,
    head: AggregationJobInitHead | None = None,
) -> LeaderJob:
    """One job over these reports; with a head of its own if the test wants one."""
    job_id = secrets.token_bytes(16)
    head = head or AggregationJobInitHead(extensions=batch_extension(batch_id))
    return LeaderJob(pair, job_id, batch_id, pair.start(reports, job_id=job_id), head)


def batch_extension(batch_id: bytes | None) -> tuple[Extension, ...]:
    return () if batch_id is None else (leader_selected_batch_id_extension(batch_id),)
