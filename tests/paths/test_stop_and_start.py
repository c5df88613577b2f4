"""Stopping and starting again in the middle of everything (I8)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import trio

from dapd.http import Ready, resource_url
from dapd.messages.common import MediaType
from dapd.testing.pair import Aggregator
from tests import raw_http
from tests.pair_harness import TaskHarness, open_pair, query_at

PATIENT: dict[str, dict[str, Any]] = {"shutdown": {"grace": 600}}
"""A grace that no test lives to see: whoever needs it has failed."""


@pytest.mark.parametrize("resource", ["hpke_config", "nothing", "tasks/AAAA/reports"])
async def test_idle_connections_do_not_hold_up_a_stop(tmp_path: Path, resource: str) -> None:
    """I8: a client that keeps its connection open is let go, whoever served its last request."""
    async with open_pair(tmp_path, leader=PATIENT, helper=PATIENT) as (pair, http):
        await http.get(resource_url(pair.helper.url, resource), MediaType.HPKE_CONFIG_LIST)
        silent = await trio.open_tcp_stream("127.0.0.1", pair.helper.port)
        async with silent:
            await pair.helper.stop()
            assert await raw_http.read_all(silent) == b""


async def test_held_requests_are_answered_when_the_daemon_stops(tmp_path: Path) -> None:
    """I8: a held GET and a held POST get "not ready" at once, and the resource is there again
    after the restart (A4).
    """
    tables: dict[str, dict[str, Any]] = {"collection": {"poll_hold": 600.0}, **PATIENT}
    async with open_pair(tmp_path, leader=tables, helper=PATIENT) as (pair, http):
        task = await pair.new_task("count")
        harness = TaskHarness(task, http)
        await harness.upload(harness.seal([1], "one too few"))
        path = f"/tasks/{harness.id_text}/collection_jobs"
        headers = {
            "Authorization": f"Bearer {task.files.collector.collector_auth_token}",
            "Content-Type": MediaType.COLLECTION_JOB_REQ.value,
        }
        body = query_at().request(task.files.collector.configuration).encode()
        answers: list[raw_http.Reply] = []

        async def post() -> None:
            answers.append(await raw_http.ask(pair.leader.port, "POST", path, headers, body))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(post)
            nursery.start_soon(post)
            while held(pair.leader) < 2:
                await trio.lowlevel.checkpoint()
            await pair.leader.stop()
        first, second = answers
        assert (first.status, first.body) == (200, b"")
        assert first.headers["location"] == second.headers["location"]
        assert first.headers["retry-after"].isdecimal()

        await pair.leader.start()
        await harness.upload(harness.seal([1], "the other one"))
        ready = await raw_http.ask(pair.leader.port, "GET", first.headers["location"], headers)
        assert ready.headers["content-type"] == MediaType.COLLECTION_JOB_RESP.value
        assert (await task.collect(query_at())).value == 2


def held(side: Aggregator) -> int:
    """How many requests wait in this Aggregator for a job to end."""
    events = side.context.finished._events.values()
    return sum(event.statistics().tasks_waiting for event in events)


@pytest.mark.parametrize("mode", ["sync", "async"])
async def test_either_side_stops_and_starts_in_the_middle(tmp_path: Path, mode: str) -> None:
    """I1, I8, A2, D2: each Aggregator is stopped between uploads, jobs and collection, and goes on
    where it was; a replay of what it knew before is still a replay.
    """
    helper = {"helper": {"mode": mode}}
    leader = {"leader": {"min_job_size": 1, "max_wait": 0}}
    async with open_pair(tmp_path, leader=leader, helper=helper) as (pair, http):
        task = await pair.new_task("sum:max_measurement=100", min_batch_size=6)
        harness = TaskHarness(task, http)
        first = harness.seal([1, 2], "first")
        await harness.upload(first)
        await pair.helper.stop()
        await harness.upload(harness.seal([10, 20], "while the Helper is away"))
        await pair.leader.stop()
        await pair.helper.start()
        await pair.leader.start()
        assert len(await harness.upload(first)) == 2
        await pair.helper.stop()
        async with trio.open_nursery() as nursery:
            results = []

            async def collect() -> None:
                results.append(await task.collect(query_at()))

            nursery.start_soon(collect)
            await harness.upload(harness.seal([50, 60], "while a collection waits"))
            await pair.helper.start()
        [result] = results
        assert (result.value, result.report_count) == (143, 6)
        assert (await harness.counters(pair.helper)) == {"aggregate_finished": 6}
        assert (await harness.counters(pair.leader)) == {
            "upload_accepted": 6,
            "upload_report_replayed": 2,
            "aggregate_finished": 6,
        }


async def test_a_job_that_both_sides_forgot_in_memory_is_finished(tmp_path: Path) -> None:
    """I1, D2, A1: the Helper restarts after its commit; the same request finds the same job."""
    async with open_pair(tmp_path, helper={"helper": {"mode": "sync"}}) as (pair, http):
        task = await pair.new_task("count")
        harness = TaskHarness(task, http)
        job = harness.start_job(harness.seal([1, 1, 0], "by hand"))
        before = await job.send()
        await pair.helper.stop()
        await pair.helper.start()
        after = await job.send()
        assert isinstance(before, Ready)
        assert before == after
        again = harness.start_job(harness.seal([1, 1], "by hand"))
        assert set((await again.run()).outcomes) == {2}, "report_replayed, also after a restart"
