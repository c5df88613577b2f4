"""Both batch modes, every Helper mode, every VDAF: exact results with bad reports among the good.

Each bad report is refused with the error the draft names, at the first Aggregator that can see it,
and counted alike by both where both have seen it.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import pytest

from dapd.collector import Query
from dapd.protocol.task import TaskSettings
from dapd.reports import ReportError
from dapd.vdaf import Measurement
from tests.clock import PRECISION, TIME
from tests.pair_harness import TaskHarness, open_pair, query_at
from tests.task_pair import flip

BatchModeName = Literal["time-interval", "leader-selected"]
Value = int | list[int]
CASES: list[tuple[str, list[Measurement], Value]] = [
    ("count", [1, 0, 1, 1], 3),
    ("sum:max_measurement=100", [100, 0, 3, 27], 130),
    (
        "sumvec:length=3,max_measurement=7",
        [[1, 2, 3], [7, 7, 7], [0, 0, 0], [0, 1, 0]],
        [8, 10, 10],
    ),
    ("histogram:length=4", [0, 3, 3, 2], [1, 0, 1, 2]),
    (
        "multihotcountvec:length=5,max_weight=2",
        [[1, 1, 0, 0, 0], [0, 0, 0, 0, 1], [0, 0, 0, 0, 0], [0, 0, 0, 1, 1]],
        [1, 1, 0, 1, 2],
    ),
]
LEADERS_AGE, HELPERS_AGE = 10, 2
"""After how many time precisions reports expire; the Helper alone sees some that did."""
UNSORTED, UNKNOWN = [(2, b""), (1, b"")], [(77, b"")]


@dataclass
class Bad:
    """Reports that somebody refuses, and with which ``ReportError``."""

    reports: list[bytes] = field(default_factory=list)
    errors: list[int] = field(default_factory=list)

    def add(self, error: ReportError, reports: list[bytes]) -> None:
        self.reports += reports
        self.errors += [error] * len(reports)

    def counts(self, interaction: str) -> dict[str, int]:
        """The counters that they raise."""
        names = (f"{interaction}_{ReportError(error).name.lower()}" for error in self.errors)
        return dict(Counter(names))


def refused_at_upload(harness: TaskHarness, some: Measurement) -> Bad:
    """What a Leader sees before it takes a report (rule B1)."""
    bad, seal = Bad(), harness.seal
    [report] = seal([some], "leader's ciphertext")
    bad.add(ReportError.HPKE_DECRYPT_ERROR, [flip(report, leader_payload(report))])
    bad.add(ReportError.OUTDATED_CONFIG, seal([some], "leader's id", unknown=["leader"]))
    for share in ("public", "leader"):
        bad.add(ReportError.INVALID_MESSAGE, seal([some], f"long {share}", spoil={share: longer}))
    bad.add(ReportError.INVALID_MESSAGE, seal([some], "public order", public=UNSORTED))
    bad.add(ReportError.INVALID_MESSAGE, seal([some], "leader order", leader=UNSORTED))
    bad.add(ReportError.INVALID_MESSAGE, seal([some], "leader unknown", leader=UNKNOWN))
    bad.add(ReportError.REPORT_TOO_EARLY, seal([some], "early", at=TIME + 3))
    bad.add(ReportError.REPORT_DROPPED, seal([some], "old", at=TIME - LEADERS_AGE - 1))
    bad.add(ReportError.REPORT_REPLAYED, seal([some], "good"))
    return bad


def refused_by_helper(harness: TaskHarness, some: Measurement) -> Bad:
    """What the Helper alone sees, once it verifies (rule B2)."""
    bad, seal = Bad(), harness.seal
    for share in ("leader", "helper"):
        bad.add(ReportError.VDAF_VERIFY_ERROR, seal([some], f"{share} proof", spoil={share: flip}))
    [report] = seal([some], "helper's ciphertext")
    bad.add(ReportError.HPKE_DECRYPT_ERROR, [flip(report, -1)])
    bad.add(ReportError.HPKE_DECRYPT_ERROR, seal([some], "helper's id", unknown=["helper"]))
    bad.add(ReportError.INVALID_MESSAGE, seal([some], "long helper", spoil={"helper": longer}))
    bad.add(ReportError.INVALID_MESSAGE, seal([some], "helper order", helper=UNSORTED))
    bad.add(ReportError.INVALID_MESSAGE, seal([some], "helper unknown", helper=UNKNOWN))
    bad.add(ReportError.REPORT_DROPPED, seal([some], "older", at=TIME - HELPERS_AGE - 1))
    bad.add(ReportError.REPORT_REPLAYED, seal([some], "seen by the Helper"))
    return bad


def longer(share: bytes) -> bytes:
    return share + b"x"


def leader_payload(report: bytes) -> int:
    """Where the Leader's ciphertext begins in a report without public extensions."""
    return 26 + 4 + int.from_bytes(report[26:30], "big") + 1 + 2 + 32 + 4


@pytest.mark.parametrize("mode", ["sync", "async", "auto"])
@pytest.mark.parametrize("batch_mode", ["time-interval", "leader-selected"])
@pytest.mark.parametrize(("vdaf", "measurements", "value"), CASES, ids=[c[0] for c in CASES])
async def test_the_result_is_exact_and_each_bad_report_is_refused_by_its_name(
    tmp_path: Path,
    mode: str,
    batch_mode: BatchModeName,
    vdaf: str,
    measurements: list[Measurement],
    value: Value,
) -> None:
    """I1, I6, B1, B2, B3: none spoils the batch, both Aggregators count the same outcomes."""
    async with open_pair(tmp_path, helper={"helper": {"mode": mode}}) as (pair, http):
        task = await pair.new_task(
            vdaf,
            batch_mode=batch_mode,
            min_batch_size=len(measurements),
            settings=TaskSettings(None, 100, LEADERS_AGE * PRECISION),
            helper_settings=TaskSettings(None, 100, HELPERS_AGE * PRECISION),
        )
        harness, some = TaskHarness(task, http), measurements[0]
        # The Helper has met this id in a job of another batch, which this Leader knows nothing of.
        seen = harness.seal([some], "seen by the Helper", at=TIME - 1)
        batch_id = b"" if batch_mode == "time-interval" else bytes(32)
        assert (await harness.start_job(seen, batch_id).run()).outcomes == bytes(1)

        at_upload, by_helper = refused_at_upload(harness, some), refused_by_helper(harness, some)
        good = harness.seal(measurements, "good")
        sent = [*good[:2], *at_upload.reports, *by_helper.reports, *good[2:]]
        refused = await harness.upload(sent)
        assert refused == [
            (report[:16], error)
            for report, error in zip(at_upload.reports, at_upload.errors, strict=True)
        ]
        assert [error for _, error in await harness.upload(good[:1])] == [
            ReportError.REPORT_REPLAYED
        ]

        query = query_at() if batch_mode == "time-interval" else Query.next_batch()
        result = await task.collect(query)
        assert (result.value, result.report_count) == (value, len(measurements))
        for side in (pair.leader, pair.helper):  # the old ones are in a batch nobody asked for
            await harness.until_counted(side, "aggregate_report_dropped", 1)
        judged = by_helper.counts("aggregate") | {"aggregate_finished": len(good)}
        uploads = at_upload.counts("upload") | {"upload_accepted": len(good + by_helper.reports)}
        uploads["upload_report_replayed"] += 1
        assert await harness.counters(pair.leader) == uploads | judged
        judged["aggregate_finished"] += len(seen)
        assert await harness.counters(pair.helper) == judged
