"""What Prometheus is told: by a pair that has worked, and by one that has not."""

from __future__ import annotations

import re
from pathlib import Path

from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics
from prometheus_client.parser import text_string_to_metric_families as parse_text

from dapd.runtime.gauges import Gauges
from tests.paths.hands import Hands, at_noon, hand_pair

OPENMETRICS = "application/openmetrics-text; version=1.0.0"


async def exposed(gauges: Gauges, side: object, accept: str = OPENMETRICS) -> dict[str, float]:
    """Every sample by its name and labels."""
    await gauges.refresh()
    context = side.context  # type: ignore[attr-defined]
    body, content_type = context.metrics.exposition(accept)
    assert content_type.startswith(accept.partition(";")[0])
    parse = parse_openmetrics if accept == OPENMETRICS else parse_text
    return {
        sample.name + "".join(f" {key}={value}" for key, value in sorted(sample.labels.items())):
        sample.value
        for family in parse(body.decode())
        for sample in family.samples
    }  # fmt: skip


async def test_a_pair_that_worked_counts_what_it_did(tmp_path: Path) -> None:
    """Reports by outcome on both sides, requests, transactions, steps, what succeeded last."""
    async with hand_pair(tmp_path) as (pair, _):
        leader, helper = Gauges(pair.leader.context), Gauges(pair.helper.context)
        before = await exposed(leader, pair.leader)
        assert "dapd_uploaded_reports_total outcome=accepted" not in before
        assert "dapd_last_success_timestamp_seconds activity=upload" not in before
        task = await pair.new_task(min_batch_size=2)
        await task.upload([1, 0, 1])
        assert (await task.collect(at_noon())).value == 2
        ours, theirs = await exposed(leader, pair.leader), await exposed(helper, pair.helper)
    assert ours["dapd_uploaded_reports_total outcome=accepted"] == 3
    assert ours["dapd_aggregated_reports_total outcome=finished role=leader"] == 3
    assert theirs["dapd_aggregated_reports_total outcome=finished role=helper"] == 3
    assert ours["dapd_http_requests_total route=reports status=200"] == 1
    assert theirs["dapd_http_requests_total route=aggregate_shares status=200"] == 1
    assert ours["dapd_transaction_seconds_count name=freeze"] == 1
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


async def test_what_waits_shows_with_its_age(tmp_path: Path) -> None:
    """A Leader whose Helper is gone: jobs by state, a failing peer, reports that will expire."""
    async with hand_pair(tmp_path) as (pair, http):
        hands = Hands(await pair.new_task(min_batch_size=2), http)
        reports = hands.seal([1, 1], "waiting")
        await pair.helper.stop()
        assert await hands.upload(reports) == []
        gauges = Gauges(pair.leader.context)
        found = await exposed(gauges, pair.leader)
        while not found.get(f"dapd_peer_failures peer={pair.helper.url}"):
            found = await exposed(gauges, pair.leader)
        assert found["dapd_jobs kind=aggregation role=leader state=stored"] == 1
        made = found["dapd_jobs_oldest_timestamp_seconds kind=aggregation role=leader"]
        assert abs(made - pair.seconds()) < 60
        await pair.helper.start()


async def test_names_and_units_are_prometheus_own(tmp_path: Path) -> None:
    """Prefix, base units, ``_total``; both text formats parse; no series names a task."""
    async with hand_pair(tmp_path) as (pair, _):
        task = await pair.new_task()
        await task.upload([1])
        gauges = Gauges(pair.leader.context)
        for accept in (OPENMETRICS, "text/plain"):
            found = await exposed(gauges, pair.leader, accept)
            assert "dapd_build_info version=0.1.0" in found
            assert found["process_open_fds"] > 0
            for name in found:
                assert re.match(r"(dapd|process|python)_", name), name
                assert not re.search(r"_(ms|millis|minutes|kb|mb)\b", name), name
                assert pair.leader.context.tasks.all()[0].id_text not in name
