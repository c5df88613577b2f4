"""Alert rules, their runbook and the dashboard: they use existing metrics and dapd's thresholds,
and Prometheus' own tool accepts them.
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from dapd.admin.gauges import Gauges
from dapd.advice import thresholds, upkeep
from tests.pair_harness import open_pair, query_at
from tests.prometheus_text import exposition

ROOT = Path(__file__).parents[2]
RULES = ROOT / "packaging/prometheus/alerts.yml"
CASES = ROOT / "packaging/prometheus/alerts_test.yml"
DASHBOARD = ROOT / "packaging/grafana/dapd.json"
RUNBOOK = ROOT / "docs/operating.md"
needs_promtool = pytest.mark.skipif(
    shutil.which("promtool") is None, reason="no promtool: install prometheus"
)
SECONDS = {
    "DapdAggregationFailing": 3 * [thresholds.NOTHING_AGGREGATED],
    "DapdBatchExpiring": [thresholds.COLLECT_WITHIN],
    "DapdCertificateExpiring": [thresholds.CERTIFICATE_URGENT],
    "DapdBackupOld": [thresholds.BACKUP_AGE],
    "DapdCertificateNotRenewed": [thresholds.CERTIFICATE_LEFT],
    "DapdPeerDown": [thresholds.PEER_DOWN],
    "DapdJobStuck": [thresholds.JOB_STUCK],
}
"""What each rule compares a time with; the other rules compare no time."""
_METRIC = re.compile(r"\b(?:dapd|process)_\w+")
_ALERT = re.compile(r"^ +- alert: (\w+)$", re.MULTILINE)


def alerts() -> dict[str, str]:
    """Return the text of each rule, from its name on."""
    parts = _ALERT.split(RULES.read_text())
    return dict(zip(parts[1::2], parts[2::2], strict=True))


def expression(name: str) -> str:
    found = re.search(
        r"^ +expr: (.*?)^ +(?:for|labels): ", alerts()[name], re.DOTALL | re.MULTILINE
    )
    assert found, name
    return found[1]


def panels() -> list[dict[str, Any]]:
    dashboard: dict[str, Any] = json.loads(DASHBOARD.read_text())
    return [panel for panel in dashboard["panels"] if panel["type"] != "row"]


def said(*command: str) -> str:
    done = subprocess.run(
        command, cwd=RULES.parent, capture_output=True, text=True, check=False, timeout=120
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@needs_promtool
def test_prometheus_takes_the_rules() -> None:
    assert f"{len(alerts())} rules found" in said("promtool", "check", "rules", RULES.name)


@needs_promtool
def test_each_alert_fires_in_its_case_and_not_in_another() -> None:
    """Each case lists all alerts that fire at a moment."""
    said("promtool", "test", "rules", CASES.name)


def test_each_alert_has_a_case_that_fires_and_one_that_does_not() -> None:
    cases = CASES.read_text()
    fires = set(re.findall(r'ALERTS\{alertname="(\w+)",alertstate="firing",.*value: 1', cases))
    silent = set(re.findall(r"alertname: (\w+), eval_time: \w+, exp_alerts: \[\]", cases))
    assert fires == silent == set(alerts())


def test_each_alert_says_what_it_is_and_where_to_read_on() -> None:
    """It has a severity, a summary, the consequences, and the runbook's heading."""
    for name, text in alerts().items():
        assert re.search(r"labels: \{severity: (page|ticket)\}", text), name
        assert re.search(r"^ +summary: .+", text, re.MULTILINE), name
        assert re.search(r"^ +description: >-\n +\S", text, re.MULTILINE), name
        assert f"runbook: docs/operating.md#{name.lower()}\n" in text, name


def test_the_runbook_has_a_heading_for_each_alert_and_no_other() -> None:
    """Its text begins with the severity. The heading's anchor is the alert's name."""
    _, _, section = RUNBOOK.read_text().partition("\n## Alerts\n")
    parts = re.split(r"^### (\w+)\n", section.partition("\n## ")[0], flags=re.MULTILINE)
    headings = dict(zip(parts[1::2], parts[2::2], strict=True))
    assert list(headings) == list(alerts()), "in the same order"
    for name, text in headings.items():
        severity = re.search(r"severity: (\w+)", alerts()[name])
        assert severity
        assert text.strip().startswith(f"{severity[1].title()}. "), name


async def test_rules_and_panels_use_metrics_that_a_daemon_exposes(tmp_path: Path) -> None:
    """Compared with its exposition after a real run, histograms by their parts."""
    async with open_pair(tmp_path) as (pair, _):
        task = await pair.new_task(min_batch_size=2)
        await task.upload([1, 0])
        await task.collect(query_at())
        text = await exposition(Gauges(pair.leader.context), pair.leader, "text/plain")
    told = set()
    for name, kind in re.findall(r"^# TYPE (\w+) (\w+)$", text, re.MULTILINE):
        parts = ("_bucket", "_count", "_sum") if kind == "histogram" else ("",)
        told |= {name + part for part in parts}
    used = {name for alert in alerts() for name in _METRIC.findall(expression(alert))}
    assert len(used) > 15
    assert used - told == set()
    shown = {
        name
        for panel in panels()
        for target in panel["targets"]
        for name in _METRIC.findall(target["expr"])
    }
    assert shown - told == set()


def test_thresholds_are_those_of_dapd_status() -> None:
    """An alert and the daemon's own advice begin at the same moment; no rule has a number that
    ``dapd.advice.thresholds`` lacks.
    """
    for alert in alerts():
        seconds = [int(each) for each in re.findall(r"[<>] (\d{3,})", expression(alert))]
        known = [int(span.total_seconds()) for span in SECONDS.get(alert, [])]
        assert (alert, seconds) == (alert, known)


def test_windows_of_the_aggregation_rule_are_as_long_as_its_threshold() -> None:
    minutes = int(thresholds.NOTHING_AGGREGATED.total_seconds()) // 60
    windows = re.findall(r"\[(\w+)\]", expression("DapdAggregationFailing"))
    assert set(windows) == {f"{minutes}m"}


def test_what_status_says_without_a_number_is_an_alert_too() -> None:
    """A full disk goes by the daemon's own mark, a held clock and a missing key by a state."""
    assert upkeep.disk(free=1, refused_below=2)
    assert upkeep.clock("it jumped")
    assert upkeep.hpke_keys(["expired"])
    for alert, comparison in (
        ("DapdDiskFull", "dapd_disk_free_bytes < dapd_disk_refused_below_bytes"),
        ("DapdClockHeld", "dapd_clock_held == 1"),
        ("DapdNoActiveKey", 'dapd_hpke_keys{state="active"} == 0'),
    ):
        assert expression(alert).strip() == comparison


def test_the_dashboard_belongs_to_no_installation() -> None:
    """Grafana imports it from a file, and asks for the data source."""
    dashboard = json.loads(DASHBOARD.read_text())
    assert dashboard["schemaVersion"] >= 30
    assert "uid" not in dashboard
    assert dashboard.get("id") is None
    variables = {each["name"]: each["type"] for each in dashboard["templating"]["list"]}
    assert variables["datasource"] == "datasource"
    sources = re.findall(r'"uid": "([^"]*)"', DASHBOARD.read_text())
    assert set(sources) == {"${datasource}"}


def test_each_panel_says_what_it_shows() -> None:
    """It has a title of its own, a unit, a description that names no unknown alert, a query."""
    titles = [panel["title"] for panel in panels()]
    assert len(set(titles)) == len(titles) > 20
    for panel in panels():
        assert panel["description"].endswith("."), panel["title"]
        assert set(re.findall(r"Dapd\w+", panel["description"])) <= set(alerts())
        assert panel["fieldConfig"]["defaults"]["unit"], panel["title"]
        assert all("$instance" in target["expr"] for target in panel["targets"]), panel["title"]


@needs_promtool
def test_each_panels_query_is_promql(tmp_path: Path) -> None:
    """With Grafana's variables filled in, Prometheus takes it as a recording rule."""
    queries = [target["expr"] for panel in panels() for target in panel["targets"]]
    filled = [each.replace("$__rate_interval", "5m").replace("$instance", ".*") for each in queries]
    rules = [{"record": f"query:{number}", "expr": each} for number, each in enumerate(filled)]
    path = tmp_path / "queries.yml"
    path.write_text(json.dumps({"groups": [{"name": "panels", "rules": rules}]}))
    assert f"{len(queries)} rules found" in said("promtool", "check", "rules", str(path))


def test_no_two_panels_lie_on_each_other() -> None:
    """On Grafana's grid of 24 columns."""
    taken: dict[tuple[int, int], str] = {}
    for panel in json.loads(DASHBOARD.read_text())["panels"]:
        place = panel["gridPos"]
        for column in range(place["x"], place["x"] + place["w"]):
            for line in range(place["y"], place["y"] + place["h"]):
                assert column < 24
                assert taken.setdefault((column, line), panel["title"]) == panel["title"]
