"""A task's integers are uint64 in the draft: SQLite, dates and sums must take the largest ones."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import pytest

from dapd.admin import jobs, status
from dapd.admin.operation import Nothing
from dapd.collector import Query
from dapd.gc.loop import GarbageCollector
from dapd.http import Processing, resource_url
from dapd.messages.common import MediaType, b64url_encode
from dapd.protocol.task import MAX_UINT64, TaskSettings
from dapd.testing import Pair
from tests.pair_harness import TaskHarness, open_pair, query_at

EXPIRING = TaskSettings(report_expiry_age=28 * 86_400)


async def look_after(pair: Pair) -> None:
    """Collect garbage and show the status: both go over all tasks."""
    for side in (pair.leader, pair.helper):
        await GarbageCollector(side.context).collect()
        await status.show(side.context, Nothing())


async def test_the_longest_time_precision_and_task_interval(tmp_path: Path) -> None:
    """All reports are of time 0; they are aggregated and collected, and none expires."""
    async with open_pair(tmp_path) as (pair, _):
        task = await pair.new_task(
            f"sumvec:length=2,max_measurement={MAX_UINT64}",
            time_precision=MAX_UINT64,
            task_interval=(0, MAX_UINT64 * MAX_UINT64),
            settings=EXPIRING,
        )
        assert (await task.upload([[MAX_UINT64, 0], [MAX_UINT64, 1]])).accepted == 2
        await look_after(pair)
        result = await task.collect()
        assert (result.value, result.start, result.duration) == ([2 * MAX_UINT64, 1], 0, MAX_UINT64)
        await look_after(pair)
        assert (await task.collect()).value == result.value


@pytest.mark.parametrize("batch_mode", ["time-interval", "leader-selected"])
async def test_the_largest_batch_size(
    tmp_path: Path, batch_mode: Literal["time-interval", "leader-selected"]
) -> None:
    """The Aggregators only compare it: they aggregate the reports, and the collection waits."""
    async with open_pair(tmp_path) as (pair, http):
        task = await pair.new_task(
            batch_mode=batch_mode, min_batch_size=MAX_UINT64, settings=EXPIRING
        )
        assert (await task.upload([1, 1, 1])).accepted == 3
        query = query_at() if batch_mode == "time-interval" else Query.next_batch()
        outcome = await http.create(
            resource_url(pair.leader.url, "tasks", b64url_encode(task.task_id), "collection_jobs"),
            query.request(task.files.collector.configuration).encode(),
            MediaType.COLLECTION_JOB_REQ,
            token := task.files.collector.collector_auth_token,
        )
        assert isinstance(outcome, Processing)
        await TaskHarness(task, http).until_counted(pair.leader, "aggregate_finished", 3)
        await look_after(pair)
        detail = await jobs.show(pair.leader.context, jobs.JobRequest("c1"))
        assert str(MAX_UINT64) in str(detail)
        outcome = await http.poll(outcome.location, token, MediaType.COLLECTION_JOB_RESP)
        assert isinstance(outcome, Processing)
