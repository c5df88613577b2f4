"""What Prometheus is told: by a pair that has worked, and by one that has not."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest
import trio

from dapd.admin.gauges import Gauges
from dapd.commits.restore import quarantine
from dapd.driver.creator import create_due
from dapd.protocol.task import TaskSettings
from dapd.runtime.peers import Peers
from dapd.testing.pair import Aggregator
from tests.clock import PRECISION, TIME
from tests.pair_harness import TaskHarness, open_pair, query_at, running_clock
from tests.prometheus_text import OPENMETRICS, TEXT, exposition, families, samples

METRICS = Path(__file__).parents[2] / "docs/metrics.md"
_ROW = re.compile(r"^\| `(\w+)` \| (\w+) \|(.*?)\| .+ \|$", re.MULTILINE)
OF_PARTS_AND_FAULTS = {
    "dapd_jobs_not_stepped_total",
    "dapd_gc_deleted_rows_total",
    "dapd_transactions_failed_total",
    "dapd_admin_requests_refused_total",
}
"""Their labels are seen where something goes wrong or is old, which is not here."""


async def test_a_pair_that_worked_counts_what_it_did(tmp_path: Path) -> None:
    """Reports by outcome on both sides, requests, transactions, steps, what succeeded last."""
    async with open_pair(tmp_path) as (pair, _):
        leader, helper = Gauges(pair.leader.context), Gauges(pair.helper.context)
        before = await samples(leader, pair.leader)
        assert before["dapd_uploaded_reports_total outcome=accepted"] == 0
        assert before["dapd_aggregated_reports_total outcome=lost role=leader"] == 0
        assert "dapd_last_success_timestamp_seconds activity=upload" not in before
        task = await pair.new_task(min_batch_size=2)
        await task.upload([1, 0, 1])
        assert (await task.collect(query_at())).value == 2
        ours, theirs = await samples(leader, pair.leader), await samples(helper, pair.helper)
    assert ours["dapd_uploaded_reports_total outcome=accepted"] == 3
    assert ours["dapd_aggregated_reports_total outcome=finished role=leader"] == 3
    assert theirs["dapd_aggregated_reports_total outcome=finished role=helper"] == 3
    assert ours["dapd_http_requests_total route=reports status=200"] == 1
    assert theirs["dapd_http_requests_total route=aggregate_shares status=200"] == 1
    assert ours["dapd_transaction_seconds_count name=collections.freeze_collection"] == 1
    assert ours["dapd_native_seconds_count call=leader_start"] >= 1
    assert ours["dapd_job_step_seconds_count kind=collection state=waiting"] >= 1
    assert ours[f"dapd_peer_requests_total outcome=ready peer={pair.helper.url}"] >= 2
    for activity in ("upload", "aggregation", "collection"):
        assert ours[f"dapd_last_success_timestamp_seconds activity={activity}"] > 1e9
    assert ours["dapd_tasks role=leader state=active"] == 1
    assert ours["dapd_hpke_keys state=active"] == 1
    assert ours["dapd_clock_held"] == 0
    assert ours["dapd_database_bytes"] > 0
    assert ours["dapd_waiting_reports"] == 0
    assert ours["dapd_tasks_quarantined"] == 0
    assert "dapd_uncollected_expiry_timestamp_seconds" not in ours, "all of it is collected"


async def peer_fails(
    gauges: Gauges, side: Aggregator, url: str, how: str = "unreachable"
) -> dict[str, float]:
    """What is told once a request to the peer has failed, and its job is back in the queue."""
    failed = f"dapd_peer_requests_total outcome={how} peer={url}"
    while failed not in (found := await samples(gauges, side)):
        await side.context.jobs._event.wait()  # rung when the job is back
    return found


async def test_what_waits_shows_why_and_since_when(tmp_path: Path) -> None:
    """A Leader whose Helper is gone: jobs blocked by it, a peer that is down, reports to expire."""
    age = 14 * 86_400
    async with open_pair(tmp_path) as (pair, http):
        settings = TaskSettings(report_expiry_age=age)
        harness = TaskHarness(await pair.new_task(min_batch_size=2, settings=settings), http)
        reports = harness.seal([1, 1], "waiting")
        await pair.helper.stop()
        began = pair.seconds()
        assert await harness.upload(reports) == []
        gauges = Gauges(pair.leader.context)
        found = await peer_fails(gauges, pair.leader, pair.helper.url)
        job = "blocked_by=peer_unreachable kind=aggregation role=leader state=stored"
        assert found[f"dapd_jobs {job}"] == 1
        assert began <= found[f"dapd_jobs_oldest_timestamp_seconds {job}"] <= pair.seconds()
        peer = f"peer={pair.helper.url}"
        down = found[f"dapd_peer_down_since_timestamp_seconds {peer}"]
        assert began - 0.01 <= down <= pair.seconds()
        assert found[f"dapd_peer_failures {peer}"] >= 1
        assert found["dapd_uncollected_expiry_timestamp_seconds"] == (TIME + 1) * PRECISION + age
        pair.leader.context.peers.at(pair.helper.url).paused = True
        found = await samples(gauges, pair.leader)
        assert found[f"dapd_jobs {job.replace('unreachable', 'paused')}"] == 1
        assert found[f"dapd_peer_paused {peer}"] == 1
        pair.leader.context.peers.at(pair.helper.url).paused = False
        await pair.helper.start()
        assert (await harness.task.collect(query_at())).value == 2
        found = await samples(gauges, pair.leader)
        assert f"dapd_peer_down_since_timestamp_seconds {peer}" not in found


async def test_a_peer_that_answers_503_is_down_until_it_serves(tmp_path: Path) -> None:
    """It can be reached, so that no request waits for it, and yet nothing gets through."""
    async with open_pair(tmp_path) as (pair, _):
        peer = f"peer={pair.helper.url}"
        task = await pair.new_task(min_batch_size=2)
        pair.helper.context.work.limit = 0
        await task.upload([1, 1])
        gauges = Gauges(pair.leader.context)
        found = await peer_fails(gauges, pair.leader, pair.helper.url, "unserved")
        assert found[f"dapd_peer_failures {peer}"] == 0
        assert f"dapd_peer_down_since_timestamp_seconds {peer}" in found
        job = "blocked_by=peer_unreachable kind=aggregation role=leader state=stored"
        assert found[f"dapd_jobs {job}"] == 1
        pair.helper.context.work.limit = 64
        assert (await task.collect(query_at())).value == 2
        found = await samples(gauges, pair.leader)
        assert f"dapd_peer_down_since_timestamp_seconds {peer}" not in found


def test_a_peer_is_down_since_the_first_failure_of_any_kind() -> None:
    """An answer such as 502 between two that never came doesn't begin a new outage."""
    clock = running_clock()
    peer = Peers(8, clock, lambda: 0.5).at("https://helper.example/")
    peer.unreachable(1, 1)
    clock.advance(60)
    peer.answered(serves=False)
    clock.advance(60)
    peer.unreachable(1, 1)
    assert peer.down_for is not None
    assert peer.down_for >= 120_000
    peer.answered(serves=True)
    assert peer.down_for is None


async def test_reports_that_are_lost_and_batches_that_a_restore_closed_are_counted(
    tmp_path: Path,
) -> None:
    """A job given up makes its batch suspect; a quarantine stays visible until it is lifted."""
    async with open_pair(tmp_path) as (pair, http):
        harness = TaskHarness(await pair.new_task(min_batch_size=2), http)
        reports = harness.seal([1, 1], "lost")
        await pair.helper.stop()
        assert await harness.upload(reports) == []
        context = pair.leader.context
        gauges = Gauges(context)
        await peer_fails(gauges, pair.leader, pair.helper.url)
        await context.run(quarantine, context.instant(), context.config.reports.early_leeway)
        found = await samples(gauges, pair.leader)
        assert found["dapd_aggregated_reports_total outcome=lost role=leader"] == 2
        assert found["dapd_tasks_quarantined"] == 1
        await pair.helper.start()


@pytest.mark.parametrize("accept", [OPENMETRICS, TEXT])
async def test_names_and_units_are_prometheus_own(tmp_path: Path, accept: str) -> None:
    """Prefix, base units, ``_total``; both text formats parse; no series names a task."""
    async with open_pair(tmp_path) as (pair, _):
        task = await pair.new_task()
        await task.upload([1])
        found = await samples(Gauges(pair.leader.context), pair.leader, accept)
        assert "dapd_build_info version=0.1.0" in found
        assert found["process_open_fds"] > 0
        for name in found:
            assert re.match(r"(dapd|process|python)_", name), name
            assert not re.search(r"_(ms|millis|minutes|kb|mb)\b", name), name
            assert pair.leader.context.tasks.all()[0].id_text not in name


@pytest.mark.skipif(shutil.which("promtool") is None, reason="no promtool: install prometheus")
async def test_prometheus_finds_no_fault_with_any_name(tmp_path: Path) -> None:
    """Its own lint of a real exposition."""
    async with open_pair(tmp_path) as (pair, _):
        await (await pair.new_task()).upload([1])
        text = await exposition(Gauges(pair.leader.context), pair.leader, TEXT)
    command = ["promtool", "check", "metrics"]
    lint = await trio.run_process(
        command, stdin=text.encode(), capture_stdout=True, capture_stderr=True, check=False
    )
    assert (lint.returncode, lint.stdout + lint.stderr) == (0, b"")


async def test_every_metric_is_documented_with_its_type_and_labels(tmp_path: Path) -> None:
    """And nothing else is. Types are declared whether or not there is anything to tell."""
    seen: dict[str, tuple[str, set[str]]] = {}
    async with open_pair(tmp_path) as (pair, http):
        harness = TaskHarness(await pair.new_task(min_batch_size=2), http)
        await harness.task.upload([1, 1])
        await harness.task.collect(query_at())
        reports = harness.seal([1, 1], "documented", at=TIME - 1)
        await pair.helper.stop()
        await harness.upload(reports)
        await create_due(pair.leader.context)
        gauges = Gauges(pair.leader.context)
        await peer_fails(gauges, pair.leader, pair.helper.url)
        for family in await families(gauges, pair.leader):
            name = {"counter": f"{family.name}_total", "info": f"{family.name}_info"}.get(
                family.type, family.name
            )
            labels = {label for sample in family.samples for label in sample.labels} - {"le"}
            seen[name] = (family.type, labels)
        await pair.helper.start()
    documented = {
        name: (kind, set(re.findall(r"`(\w+)`", labels)))
        for name, kind, labels in _ROW.findall(METRICS.read_text())
    }
    assert documented.keys() == seen.keys()
    for name, (kind, labels) in documented.items():
        assert (name, kind) == (name, seen[name][0])
        if name not in OF_PARTS_AND_FAULTS:
            assert (name, labels) == (name, seen[name][1])
