"""Tasks that are stopped, deleted and added again, and their tokens, beside running daemons."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Concatenate, Literal, ParamSpec

import pytest

from dapd.collector import CollectionFailed, Query
from dapd.commits.tasks import (
    add_task,
    add_token,
    delete_task,
    remove_token,
    set_task_state,
    use_token,
)
from dapd.crypto import hash_token
from dapd.datastore import Tx, open_for_command
from dapd.gc.loop import GarbageCollector
from dapd.http import Refused, resource_url
from dapd.messages.common import MediaType
from dapd.protocol.task import TaskSettings, TaskState
from dapd.reports import ReportError
from dapd.taskfile import aggregator_task
from dapd.testing.pair import Aggregator
from tests.clock import TIME
from tests.pair_harness import TaskHarness, open_pair, query_at, running_clock

P = ParamSpec("P")


def command(
    side: Aggregator, fn: Callable[Concatenate[Tx, P], object], *args: P.args, **kwargs: P.kwargs
) -> None:
    """A transaction of another process (E5)."""
    opened = open_for_command(side.context.datastore.path, holder="a command", now=0)
    opened.datastore.run_sync(fn, *args, **kwargs)
    opened.close()


async def outcomes(harness: TaskHarness, reports: list[bytes]) -> set[int]:
    """How the Leader answers for each of them; 0 for accepted."""
    rejected = dict(await harness.upload(reports))
    ids = [report[:16] for report in reports]
    assert set(rejected) <= set(ids)
    return {rejected.get(each, 0) for each in ids}


async def test_a9_e5_tokens_are_replaced_while_both_sides_work(tmp_path: Path) -> None:
    """A9, E5: the receiver first; the new one is let in at its first request, never a 401 that a
    command has just lifted. What is aggregated meanwhile is all there.
    """
    async with open_pair(tmp_path) as (pair, http):
        task = await pair.new_task("count")
        harness = TaskHarness(task, http)
        old, task_id = task.files.leader.aggregator_auth_token, task.task_id
        jobs = resource_url(pair.helper.url, "tasks", harness.id_text, "aggregation_jobs")

        async def status(token: str) -> int:
            """Of a request that is refused for what it says, if it is let in."""
            refused = await http.create(jobs, b"", MediaType.AGGREGATION_JOB_INIT_REQ, token)
            assert isinstance(refused, Refused), refused
            return refused.status

        await harness.upload(harness.seal([1, 1], "before"))
        assert await status("new") == 401
        command(pair.helper, add_token, task_id, hash_token("new"))
        assert await status("new") == 400
        assert await status(old) == 400
        command(pair.leader, use_token, task_id, "new", pair.leader.context.sealer)
        await pair.leader.context.tasks.refresh()
        command(pair.helper, remove_token, task_id)
        await pair.helper.context.tasks.refresh()
        assert await status(old) == 401
        await harness.upload(harness.seal([1, 0], "after"))
        result = await task.collect(query_at())
        assert (result.report_count, result.value) == (4, 3)


async def test_a_disabled_task_waits(tmp_path: Path) -> None:
    """Nobody is served, nothing is stepped, nothing is lost; enabled, it goes on at once."""
    async with open_pair(tmp_path, leader={"leader": {"max_wait": 600.0}}) as (pair, http):
        task = await pair.new_task("count")
        harness = TaskHarness(task, http)
        await harness.upload(harness.seal([1, 1, 0], "before"))
        command(pair.leader, set_task_state, task.task_id, TaskState.DISABLED)
        await pair.leader.context.tasks.refresh()
        url = f"{pair.leader.url}tasks/{harness.id_text}/reports"
        refused = await http.upload(url, harness.seal([1], "meanwhile")[0])
        assert isinstance(refused, Refused)
        assert refused.type == "unrecognizedTask"
        with pytest.raises(CollectionFailed) as failed:
            await task.collect(query_at())
        assert failed.value.type == "unrecognizedTask"
        command(pair.leader, set_task_state, task.task_id, TaskState.ACTIVE)
        assert (await task.collect(query_at())).report_count == 3


@pytest.mark.parametrize("batch_mode", ["time-interval", "leader-selected"])
async def test_d6_drained_collected_deleted_added_again(
    tmp_path: Path, batch_mode: Literal["time-interval", "leader-selected"]
) -> None:
    """D6: a report of the first life is accepted and aggregated by nobody in the second one, at
    either side, also not one that the Leader had refused while it drained.
    """
    clock = running_clock()
    async with open_pair(tmp_path, clock=clock) as (pair, http):
        task = await pair.new_task("count", batch_mode=batch_mode, min_batch_size=3)
        harness = TaskHarness(task, http)
        sides = [
            (pair.leader, aggregator_task(task.files.leader, TaskSettings())),
            (pair.helper, aggregator_task(task.files.helper, TaskSettings())),
        ]
        first = harness.seal([1, 1, 0], "first life")
        assert await outcomes(harness, first) == {0}
        command(pair.leader, set_task_state, task.task_id, TaskState.DRAINING)
        late = harness.seal([1], "too late")
        assert await outcomes(harness, late) == {ReportError.REPORT_DROPPED}
        query = query_at() if batch_mode == "time-interval" else None
        assert (await task.collect(query)).report_count == 3
        for side, _ in sides:
            command(side, delete_task, task.task_id, clock.now(), 300.0, discard=False)
            await side.context.tasks.refresh()
            await GarbageCollector(side.context).collect()
            assert [state for _, state in await marks(side)] == ["purged"]
        for side, file in sides:
            command(side, add_task, file, side.context.sealer)
        assert await outcomes(harness, first + late) == {ReportError.REPORT_DROPPED}
        job = harness.start_job(first, bytes(32) if batch_mode == "leader-selected" else b"")
        finished = await job.run()
        assert finished.outcomes == bytes([ReportError.REPORT_DROPPED] * 3)
        clock.advance(2 * 3600)
        second = harness.seal([1, 1, 1], "second life", at=TIME + 2)
        assert await outcomes(harness, second) == {0}
        query = Query.interval((TIME + 1) * 3600, 7200) if query else None
        result = await task.collect(query)
        assert (result.report_count, result.value) == (3, 3)


async def marks(side: Aggregator) -> list[tuple[int, str]]:
    def look(tx: Tx) -> list[tuple[int, str]]:
        return [(mark, state) for mark, state in tx.all("SELECT expired_before, state FROM tasks")]

    return await side.context.read(look)
