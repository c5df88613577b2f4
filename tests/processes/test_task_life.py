"""A task from its first report to its second life, by the commands that an operator types."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import trio

from dapd.collector import Collector, Query
from dapd.http import DapHttp, Ready, resource_url
from dapd.messages.common import HpkeConfigList, MediaType, b64url_encode
from dapd.reports import ReportError, parse_upload_errors, seal_reports, shard
from dapd.taskfile import CollectorTask, TaskFile, read_task_file
from dapd.vdaf import make_vdaf
from tests.pair_harness import until
from tests.processes.daemons import (
    QUICK,
    SECONDS,
    DaemonProcess,
    assert_calm,
    run_command,
    start_pair,
)
from tests.task_pair import make_ids

OFTEN = f"{QUICK}\n[gc]\ninterval = 0.1\n\n[reports]\nearly_leeway = 0.0\n"
PRECISION = 1
"""Second: a moment after its first life has ended, the second one takes reports."""


async def dapd_task(daemon: DaemonProcess, *arguments: object) -> str:
    status, stdout, stderr = await run_command("--config", daemon.config, "task", *arguments)
    assert status == 0, stderr
    return stdout


async def shown(daemon: DaemonProcess, task: TaskFile) -> dict[str, Any]:
    said = await dapd_task(daemon, "show", b64url_encode(task.task_id), "--json")
    return dict(json.loads(said))


async def new_task(out: Path, **urls: str) -> None:
    """``dapd task new`` with these endpoints, by role."""
    status, _, stderr = await run_command(
        "task", "new", "--vdaf", "count", "--batch-mode", "time-interval",
        "--time-precision", PRECISION, "--min-batch-size", 3, "--out", out,
        *(word for role, url in urls.items() for word in (f"--{role}", url)),
    )  # fmt: skip
    assert status == 0, stderr


async def make_task(daemons: dict[str, DaemonProcess], out: Path) -> None:
    """``new_task``, and ``dapd task add`` at both."""
    await new_task(out, **{role: each.wire.url for role, each in daemons.items()})
    for role, daemon in daemons.items():
        await dapd_task(daemon, "add", out / f"{role}.toml")


async def seal(http: DapHttp, task: TaskFile, label: str) -> list[bytes]:
    """Three encoded reports of this moment, which may be sent more than once."""
    configs = []
    agreed = task.configuration
    for endpoint in (agreed.leader_aggregator_endpoint, agreed.helper_aggregator_endpoint):
        answer = await http.get(resource_url(endpoint, "hpke_config"), MediaType.HPKE_CONFIG_LIST)
        assert isinstance(answer, Ready), answer
        configs.append(HpkeConfigList.decode(answer.body).configs[0])
    leader, helper = (config.as_tuple for config in configs)
    ids = make_ids(3, label)
    return seal_reports(
        task.task_id,
        agreed.encode(),
        leader,
        helper,
        ids,
        [int(time.time()) // PRECISION] * 3,
        *shard(make_vdaf(agreed.vdaf), task.task_id, [1, 1, 0], ids),
    )


async def upload(http: DapHttp, task: TaskFile, reports: list[bytes]) -> set[int]:
    """How each is answered; 0 for accepted."""
    endpoint = task.configuration.leader_aggregator_endpoint
    url = resource_url(endpoint, "tasks", b64url_encode(task.task_id), "reports")
    answer = await http.upload(url, b"".join(reports))
    assert isinstance(answer, Ready), answer
    rejected = dict(parse_upload_errors(answer.body))
    return {rejected.get(report[:16], 0) for report in reports}


async def test_d6_a_task_is_ended_and_added_again_beside_running_daemons(
    tmp_path: Path, nursery: trio.Nursery
) -> None:
    """Drain, collect, delete, and its rows are gone; added again, it drops a report of its first
    life and counts those of its second.
    """
    with trio.fail_after(SECONDS):
        daemons = await start_pair(tmp_path, nursery, OFTEN)
        leader, both = daemons["leader"], list(daemons.values())
        await make_task(daemons, tmp_path / "task")
        client = read_task_file(tmp_path / "task/client.toml")
        collector = read_task_file(tmp_path / "task/collector.toml")
        assert isinstance(collector, CollectorTask)
        task_id = b64url_encode(client.task_id)
        since = int(time.time()) - 60
        async with DapHttp() as http, Collector(collector) as collecting:
            first = await seal(http, client, "first life")
            assert await upload(http, client, first) == {0}
            assert (await shown(leader, client))["collect_before"] is not None
            await dapd_task(leader, "drain", task_id)
            late = await seal(http, client, "too late")
            assert await upload(http, client, late) == {ReportError.REPORT_DROPPED}
            async with collecting.collect(Query.interval(since, 3600)) as result:
                assert (result.report_count, result.value) == (3, 2)
            assert (await shown(leader, client))["collect_before"] is None
            for daemon in both:
                await dapd_task(daemon, "delete", task_id)
            for role, daemon in daemons.items():
                await _until_purged(daemon)
                for table in ("report_chunks", "aggregation_jobs", "batch_shares", "collected"):
                    assert daemon.read(f"SELECT count(*) FROM {table}") == [(0,)]  # noqa: S608
                await dapd_task(daemon, "add", tmp_path / f"task/{role}.toml")
            assert await upload(http, client, first + late) == {ReportError.REPORT_DROPPED}
            mark: int = max(each.read("SELECT expired_before FROM tasks")[0][0] for each in both)

            async def is_over() -> bool:
                return time.time() >= mark

            await until(is_over)
            second = await seal(http, client, "second life")
            assert await upload(http, client, second) == {0}
            async with collecting.collect(Query.interval(mark, 3600)) as result:
                assert (result.report_count, result.value) == (3, 2)
        for daemon in both:
            assert await daemon.stop() == 0
    assert_calm(both)


async def _until_purged(daemon: DaemonProcess) -> None:
    async def purged() -> bool:
        return daemon.read("SELECT state FROM tasks") == [("purged",)]

    await until(purged)
