"""``dapd demo`` as somebody runs it who has just cloned the project (in CI, without a terminal)."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from dapd.cli import main
from dapd.demo.questions import Question

_CLIENTS = 240


def _events(log: Path) -> Counter[str]:
    return Counter(json.loads(line)["event"] for line in log.read_text().splitlines())


def test_two_real_processes_collect_the_truth(tmp_path: Path) -> None:
    """Histogram and sum are exact; the Helper answers the one's jobs later, the other's at once."""
    kept = tmp_path / "kept"
    run = subprocess.run(
        [sys.executable, "-m", "dapd", "demo", "--clients", str(_CLIENTS), "--keep", kept],
        check=False,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert run.returncode == 0, run.stdout + run.stderr
    assert run.stderr == ""
    assert run.stdout.count(f"equal: {_CLIENTS} reports") == 2
    assert "\x1b" not in run.stdout, "plain where no terminal is"
    shown = re.findall(r"^  (?:leader|helper) [\d:.]+ .*$", run.stdout, re.MULTILINE)
    assert max(map(len, shown)) <= 80, "no ids, which tell nobody anything here"
    jobs, processing, polls = (
        tuple(map(int, re.findall(rf"^  {name} +(\d+) +(\d+)", run.stdout, re.MULTILINE)[0]))
        for name in ("aggregation jobs", 'answered "processing"', "polls")
    )
    assert processing == (jobs[0], 0)
    assert polls[0] >= jobs[0] > 0
    assert polls[1] == 0
    leader, helper = (_events(kept / role / "dapd.log") for role in ("leader", "helper"))
    assert leader["collection_finished"] == helper["aggregate_share_made"] == 2
    assert leader["stopped"] == helper["stopped"] == 1


def test_a_difference_fails_and_shows_both_logs(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """Exit status 1, what differs in one line, the ends of both logs, and where the files are."""
    # Nothing makes two honest Aggregators count wrong: the truth is replaced instead.
    monkeypatch.setattr(Question, "truth", lambda _, answers: [len(answers), 0, 0])
    with pytest.raises(SystemExit) as exit_:
        main(["demo", "--clients", "20", "--keep", str(tmp_path / "kept")])
    assert exit_.value.code == 1
    said = capsys.readouterr().out
    assert re.search(
        r"The demo failed: sleep: collected \[.*\], but the truth is \[20, 0, 0\]", said
    )
    assert "The end of the leader's log" in said
    assert "The end of the helper's log" in said
    assert '"event":"collection_finished"' in said
    assert str(tmp_path / "kept") in said.replace("\n", "")


def test_a_directory_with_files_is_left_alone(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """--keep overwrites nothing."""
    (tmp_path / "mine").touch()
    with pytest.raises(SystemExit) as exit_:
        main(["demo", "--keep", str(tmp_path)])
    assert exit_.value.code == 2
    assert "not empty" in capsys.readouterr().err
