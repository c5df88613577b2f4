"""What a Helper answers to jobs that no Leader of ours sends, and what it alone finds early."""

from __future__ import annotations

from pathlib import Path

import pytest
import trio

from dapd.http import Refused
from dapd.protocol.task import TaskSettings
from dapd.reports import ReportError
from tests.clock import PRECISION, TIME
from tests.pair_harness import TaskHarness, open_pair, query_at, running_clock
from tests.task_pair import flip


@pytest.mark.parametrize("mode", ["sync", "async"])
async def test_i6_every_report_of_a_job_is_answered_in_order(tmp_path: Path, mode: str) -> None:
    """B2: the Helper names each fault as the draft does, the good reports between them count."""
    async with open_pair(tmp_path, helper={"helper": {"mode": mode}}) as (pair, http):
        task = await pair.new_task(
            "sum:max_measurement=9",
            task_interval=((TIME - 5) * PRECISION, 15 * PRECISION),
            settings=TaskSettings(report_expiry_age=3 * PRECISION),
        )
        harness = TaskHarness(task, http)
        assert (await harness.start_job(harness.seal([7], "known")).run()).outcomes == bytes(1)
        [tampered] = harness.seal([1], "tampered")
        reports = [
            *harness.seal([1, 2], "good"),
            *harness.seal([1], "not started", at=TIME - 6),
            *harness.seal([1], "expired", at=TIME + 10),
            *harness.seal([1], "early", at=TIME + 3),
            *harness.seal([1], "old", at=TIME - 4),
            *harness.seal([7], "known"),
            flip(tampered, -1),
            *harness.seal([1], "unknown key", unknown=["helper"]),
            *harness.seal([1], "undecodable", spoil={"helper": lambda share: share + b"x"}),
            *harness.seal([1], "proof", spoil={"helper": flip}),
            *harness.seal([1], "extensions", helper=[(3, b""), (2, b"")]),
            *harness.seal([4], "good at last"),
        ]
        job = harness.start_job(reports)
        finished = await job.run()
        # The Leader's columns go by bucket, in the order in which each was met first.
        by_id = dict(zip(job.ids, finished.outcomes, strict=True))
        assert [ReportError(by_id[report[:16]]) for report in reports] == [
            ReportError.FINE,
            ReportError.FINE,
            ReportError.TASK_NOT_STARTED,
            ReportError.TASK_EXPIRED,
            ReportError.REPORT_TOO_EARLY,
            ReportError.REPORT_DROPPED,
            ReportError.REPORT_REPLAYED,
            ReportError.HPKE_DECRYPT_ERROR,
            ReportError.HPKE_DECRYPT_ERROR,
            ReportError.INVALID_MESSAGE,
            ReportError.VDAF_VERIFY_ERROR,
            ReportError.INVALID_MESSAGE,
            ReportError.FINE,
        ]
        assert [total.count for total in finished.buckets] == [3]


async def test_b3_b4_jobs_that_name_another_key_or_mode_are_refused_whole(tmp_path: Path) -> None:
    """A3: nothing of a refused job is stored; the same reports in a right one are fresh."""
    async with open_pair(tmp_path) as (pair, http):
        harness = TaskHarness(await pair.new_task("count"), http)
        right = harness.start_job(harness.seal([1, 1], "job"))
        with_batch_id = harness.start_job(harness.seal([1, 1], "job"), batch_id=bytes(32))
        refused = await with_batch_id.send()
        assert isinstance(refused, Refused)
        assert refused.type == "unsupportedExtension"
        for body, error in (
            (b"\x07" + right.request[1:], "invalidMessage"),  # verification_key_id
            (right.request[:-1], "invalidMessage"),
            (right.request + right.started.verify_inits, "invalidMessage"),  # ids twice
            (right.request[: -len(right.started.verify_inits)], "invalidMessage"),  # no report
        ):
            refused = await right.send(body)
            assert isinstance(refused, Refused)
            assert refused.type == error
        assert (await right.run()).outcomes == bytes(2)


@pytest.mark.parametrize("mode", ["sync", "async"])
async def test_d5_a_report_too_early_for_the_helper_alone_comes_again(
    tmp_path: Path, mode: str
) -> None:
    """Its chunk is cut off and waits; the collection waits for it; it counts once (D5, C3, I1)."""
    clock = running_clock()
    async with open_pair(
        tmp_path,
        leader={"reports": {"early_leeway": 3600.0}},
        helper={"helper": {"mode": mode}, "reports": {"early_leeway": 0.0}},
        clock=clock,
    ) as (pair, http):
        task = await pair.new_task("sum:max_measurement=9")
        harness = TaskHarness(task, http)
        now, soon = harness.seal([1, 2], "now"), harness.seal([4], "soon", at=TIME + 1)
        assert await harness.upload([*now, *soon]) == []
        await harness.until_counted(pair.helper, "aggregate_report_too_early", 1)
        values = []

        async def collect() -> None:
            values.append((await task.collect(query_at(duration=2))).value)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(collect)
            await harness.until_counted(pair.helper, "aggregate_report_too_early", 2)
            assert not values
            clock.advance(PRECISION)
        assert values == [7]
        assert (await harness.counters(pair.leader)) == {
            "upload_accepted": 3,
            "aggregate_finished": 3,
        }
        assert (await harness.counters(pair.helper))["aggregate_finished"] == 3
