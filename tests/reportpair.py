"""A Leader, a Helper, their Clients and Collector in one process, without a database."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field

from dapd import crypto, reports
from dapd.messages.task import (
    Prio3Count,
    Prio3Histogram,
    Prio3MultihotCountVec,
    Prio3Sum,
    Prio3SumVec,
)
from dapd.vdaf import Measurement, VdafConfiguration, make_vdaf, merge, unshard

SUITE = (0x0020, 0x0001, 0x0001)
START, END, NOW = 100, 200, 150
CONFIGURATION = b"encoded TaskConfiguration"
JOB, BATCH = bytes([7]) * 16, bytes([8]) * 32
CASES: list[tuple[VdafConfiguration, list[Measurement], int | list[int]]] = [
    (Prio3Count(), [1, 0, 1, 1], 3),
    (Prio3Sum(100), [100, 0, 3, 27], 130),
    (Prio3SumVec(3, 7, 2), [[1, 2, 3], [7, 7, 7], [0, 0, 0], [0, 1, 0]], [8, 10, 10]),
    (Prio3Histogram(4, 2), [0, 3, 3, 2], [1, 0, 1, 2]),
    (
        Prio3MultihotCountVec(5, 2, 2),
        [[1, 1, 0, 0, 0], [0, 0, 0, 0, 1], [0, 0, 0, 0, 0], [0, 0, 0, 1, 1]],
        [1, 1, 0, 1, 2],
    ),
]


def rules(**changes: int) -> reports.ReportRules:
    """The bounds at ``NOW``; reports up to a tick ahead are taken, and extension 9 is known."""
    bounds = {"too_early_after": NOW + 1, "task_start": START, "task_end": END, "expired_before": 0}
    return reports.ReportRules(**(bounds | changes), known_extensions=[9, 10])


def make_ids(count: int, label: str = "") -> bytes:
    """Report ids that are the same in every run."""
    return b"".join(hashlib.sha256(f"{label}{n}".encode()).digest()[:16] for n in range(count))


def flip(data: bytes, at: int = 0) -> bytes:
    """The bytes with one bit changed."""
    at %= len(data)
    return data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :]


def opaque32(data: bytes) -> bytes:
    """``opaque<0..2^32-1>``."""
    return len(data).to_bytes(4, "big") + data


@dataclass
class Pair:
    """A Leader, a Helper and their Clients and Collector for one task."""

    config: VdafConfiguration = field(default_factory=Prio3Count)
    by_time: bool = True

    def __post_init__(self) -> None:
        self.vdaf = make_vdaf(self.config)
        self.task_id = hashlib.sha256(self.config.kind.encode()).digest()
        self.leader = crypto.HpkeKeypair.generate(1, *SUITE)
        self.helper = crypto.HpkeKeypair.generate(2, *SUITE)
        self.leader_ring = crypto.Keyring([self.leader])
        self.helper_ring = crypto.Keyring([self.helper])
        self.sealer = crypto.make_sealer([bytes(32)])
        self.task = reports.TaskParameters(
            self.vdaf, self.task_id, CONFIGURATION, bytes(32), bucket_by_time=self.by_time
        )

    @property
    def batch_id(self) -> bytes | None:
        return None if self.by_time else BATCH

    def make(
        self,
        measurements: Sequence[Measurement],
        *,
        label: str = "",
        time: int = NOW,
        times: Sequence[int] | None = None,
        public: reports.Extensions = (),
        leader: reports.Extensions = (),
        helper: reports.Extensions = (),
        tamper: str = "",
    ) -> list[bytes]:
        """Encoded ``Report``s. Each argument is a way to be bad; ``tamper`` names the share that
        gets spoilt before it is sealed.
        """
        count = len(measurements)
        ids = make_ids(count, label)
        shares = reports.shard(self.vdaf, self.task_id, measurements, ids)  # type: ignore[arg-type]
        columns = dict(zip(("public", "leader", "helper"), shares, strict=True))
        if tamper in columns:  # does not decode
            columns[tamper] = [share + b"x" for share in columns[tamper]]
        elif tamper == "proof":  # decodes, but the proof fails
            columns["helper"] = [flip(share) for share in columns["helper"]]
        return reports.seal_reports(
            self.task_id,
            CONFIGURATION,
            self.leader.config,
            self.helper.config,
            ids,
            times or [time] * count,
            columns["public"],
            columns["leader"],
            columns["helper"],
            public_extensions=public,
            leader_extensions=leader,
            helper_extensions=helper,
        )

    def open(
        self, *bodies: bytes, bounds: reports.ReportRules | None = None
    ) -> reports.UploadGroup:
        """One upload request per body."""
        requests = [(self.task, bounds or rules(), body) for body in bodies]
        return reports.open_uploads(requests, self.leader_ring, self.sealer)

    def store(self, encoded: Sequence[bytes], max_rows: int = 100) -> list[reports.Chunk]:
        """The chunks of an upload that is accepted as a whole."""
        parts = self.open(b"".join(encoded)).parts
        assert sum(part.count for part in parts) == len(encoded)
        return [chunk for part in parts for chunk in part.chunks(bytes(part.count), max_rows)]

    def start(
        self, encoded: Sequence[bytes], bounds: reports.ReportRules | None = None
    ) -> reports.LeaderStart:
        """Upload, and one aggregation job of all of it."""
        columns = [chunk[3:] for chunk in self.store(encoded)]
        return reports.leader_start(self.task, bounds or rules(), self.sealer, JOB, columns)

    def verify(
        self,
        verify_inits: bytes,
        known: bytes | None = None,
        bounds: reports.ReportRules | None = None,
    ) -> reports.HelperVerified:
        """The Helper's work before its transaction."""
        job = reports.HelperJob(b"head" + verify_inits, 4)
        column = bytes(job.count) if known is None else known
        return job.verify(
            self.task, bounds or rules(), self.helper_ring, self.sealer, JOB, self.batch_id, column
        )

    def help(self, verify_inits: bytes) -> reports.HelperFinish:
        """The Helper's whole job, where nothing was replayed or collected."""
        verified = self.verify(verify_inits)
        return verified.finish([], bytes(len(verified.candidates([])) // 16))

    def lead(self, start: reports.LeaderStart, response: bytes) -> reports.LeaderFinish:
        """The Leader's last step."""
        return reports.leader_finish(
            self.task, self.sealer, JOB, self.batch_id, start.state, response
        )

    def totals(
        self, buckets: Sequence[reports.BucketTotal]
    ) -> list[tuple[bytes, int, bytes, int, int, bytes]]:
        """The totals with their shares unsealed."""
        return [
            (b.bucket, b.count, b.checksum, b.time_min, b.time_max, self.unseal(b)) for b in buckets
        ]

    def unseal(self, total: reports.BucketTotal) -> bytes:
        """The encoded aggregate share."""
        return self.sealer.open(
            crypto.batch_share_aad(self.task_id, JOB, total.bucket), total.share
        )

    def collect(self, leader: reports.LeaderFinish, helper: reports.HelperFinish) -> object:
        """What the Collector gets."""
        shares = [merge(self.vdaf, map(self.unseal, side.buckets)) for side in (leader, helper)]
        return unshard(self.vdaf, shares[0], shares[1], sum(b.count for b in leader.buckets))


def parse_response(response: bytes) -> list[tuple[bytes, int, bytes]]:
    """(report id, type, payload or error) of an ``AggregationJobResp``."""
    found = []
    while response:
        end = 21 + int.from_bytes(response[17:21], "big") if response[16] == 0 else 18
        found.append((response[:16], response[16], response[21 if response[16] == 0 else 17 : end]))
        response = response[end:]
    return found


def bad_public_share(pair: Pair) -> bytes:
    """A ``VerifyInit`` whose public share opens but does not decode; no Leader of ours sends it."""
    (report,) = pair.make([some(pair)], label="public", tamper="public")
    head = 26 + 4 + int.from_bytes(report[26:30], "big")
    leader_len = 1 + 2 + 32 + 4 + int.from_bytes(report[head + 35 : head + 39], "big")
    return report[:head] + report[head + leader_len :] + opaque32(b"\x00" + opaque32(b"message"))


def some(pair: Pair) -> Measurement:
    return next(ms[0] for config, ms, _ in CASES if config == pair.config)
