"""Each line says for which task, job and request its code worked, and for no other."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import structlog
import trio
from structlog.contextvars import merge_contextvars

from dapd.datastore import Tx
from dapd.messages.common import MediaType, b64url_decode
from dapd.protocol.task import TaskSettings
from dapd.telemetry.log_context import add_request_id
from dapd.testing import Pair, PairTask
from tests import raw_http
from tests.pair_harness import TaskHarness, open_pair, query_at

OF_A_STEP = {"job_sent", "job_processing", "job_polled", "job_finished", "collection_finished"}
OF_A_REQUEST = {"job_stored", "aggregate_share_made"}


@contextmanager
def lines() -> Iterator[list[Any]]:
    """What is logged meanwhile, with its context."""
    with structlog.testing.capture_logs(processors=[merge_contextvars, add_request_id]) as logs:
        yield logs


async def work(pair: Pair, mode: Any) -> PairTask:
    """A task, whose Helper works in this mode, from its upload to its result."""
    task = await pair.new_task(helper_settings=TaskSettings(helper_mode=mode))
    await task.upload([1, 1, 0])
    assert (await task.collect(query_at())).value == 2
    return task


async def test_two_tasks_at_a_time_keep_their_lines_apart(tmp_path: Path) -> None:
    """A step has task, job and kind; what a request has started has its id, to the end."""
    async with open_pair(tmp_path) as (pair, _):
        with lines() as logs:
            async with trio.open_nursery() as nursery:
                for mode in ("sync", "async"):
                    nursery.start_soon(work, pair, mode)
    task_of: dict[str, str] = {}
    for line in logs:
        about = line.keys() & {"task_id", "job_id", "kind", "request_id"}
        if "job_id" in line:
            assert len(b64url_decode(line["job_id"])) == 16
            assert task_of.setdefault(line["job_id"], line["task_id"]) == line["task_id"]
        if line["event"] in OF_A_STEP:
            assert about == {"task_id", "job_id", "kind"}, line
        if line["event"] in OF_A_REQUEST:
            assert about == {"task_id", "job_id", "request_id"}, line
    assert len(set(task_of.values())) == 2
    assert {line["event"] for line in logs} >= OF_A_STEP | OF_A_REQUEST
    verified = {line["at_once"]: line for line in logs if line["event"] == "job_verified"}
    assert "request_id" in verified[True]
    assert verified[False]["kind"] == "aggregation"


async def test_a_handlers_failure_is_found_by_what_its_caller_was_told(tmp_path: Path) -> None:
    """The problem document's ``instance`` is in one line, with the task; the next request has
    another.
    """

    def damage(tx: Tx) -> None:
        tx.execute("ALTER TABLE aggregation_jobs RENAME TO elsewhere")

    def repair(tx: Tx) -> None:
        tx.execute("ALTER TABLE elsewhere RENAME TO aggregation_jobs")

    async with open_pair(tmp_path) as (pair, http):
        harness = TaskHarness(await pair.new_task(), http)
        await pair.helper.context.run(damage)
        headers = {
            "Authorization": f"Bearer {harness.task.files.leader.aggregator_auth_token}",
            "Content-Type": MediaType.AGGREGATION_JOB_INIT_REQ.value,
        }
        path = f"/tasks/{harness.id_text}/aggregation_jobs"
        with lines() as logs:
            replies = [
                await raw_http.ask(pair.helper.port, "POST", path, headers) for _ in range(2)
            ]
        await pair.helper.context.run(repair)
        refused = await raw_http.ask(pair.helper.port, "POST", path)
    failures = [line for line in logs if line["event"] == "request_failed"]
    assert [reply.problem["instance"] for reply in replies] == [
        f"urn:uuid:{line['request_id']}" for line in failures
    ]
    assert len({line["request_id"] for line in failures}) == 2
    assert {(line["route"], line["task_id"]) for line in failures} == {
        ("aggregation_jobs", harness.id_text)
    }
    assert (refused.status, "instance" in refused.problem) == (401, False)
