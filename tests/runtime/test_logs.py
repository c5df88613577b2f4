"""One renderer for whatever is said, one event a line, no flood."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from typing import Any

import pytest
import structlog

from dapd.runtime.logs import Dam

PROLOGUE = """
import logging, sys, threading, warnings
import structlog
from dapd.runtime import logs
logs.configure("info", {form!r})
log = structlog.get_logger()
"""


def said(code: str, form: str = "json", **environment: str) -> list[str]:
    """The lines on standard output of a program that configures its log."""
    program = PROLOGUE.format(form=form) + code
    run = subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        text=True,
        env={**os.environ, **environment},
        timeout=60,
        check=False,
    )
    assert run.stderr == ""
    return run.stdout.splitlines()


def events(lines: Sequence[str]) -> list[dict[str, Any]]:
    return [json.loads(line) for line in lines]


@pytest.mark.parametrize(
    ("code", "event", "level"),
    [
        ("log.info('listening', port=1)", "listening", "info"),
        ("logging.getLogger('hypercorn.error').warning('odd %s', 'thing')", "library", "warning"),
        ("warnings.warn('old')", "library", "warning"),
        ("1 / 0", "uncaught", "critical"),
        ("t = threading.Thread(target=lambda: 1 / 0); t.start()", "uncaught_in_thread", "error"),
        ("class A:\n  def __del__(self): 1 / 0\nA()", "unraisable", "error"),
    ],
)  # fmt: skip
def test_everything_goes_through_one_renderer(code: str, event: str, level: str) -> None:
    """dapd, libraries, warnings, uncaught errors of any thread: a JSON line each."""
    (line,) = events(said(code))
    assert (line["event"], line["level"]) == (event, level)
    assert line["timestamp"].endswith("Z")
    assert ("ZeroDivisionError" in line.get("exception", "")) == ("/ 0" in code)


def test_i9_a_traceback_shows_no_local_variable() -> None:
    """A key in a frame stays there."""
    (line,) = said("def work(secret):\n  return 1 / 0\nwork('s3cr3t' + 'k3y')")
    assert "s3cr3tk3y" not in line


def test_the_journal_is_told_priorities() -> None:
    """Where standard output is the journal, lines begin with its severity; in a pipe they don't."""
    prologue = (
        "import os, sys\n"
        "found = os.fstat(1)\n"
        "os.environ['JOURNAL_STREAM'] = f'{found.st_dev}:{found.st_ino}'\n"
    )
    code = PROLOGUE.format(form="json") + "log.info('a'); log.warning('b'); log.error('c')"
    run = subprocess.run(
        [sys.executable, "-c", prologue + code],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert [line[:3] for line in run.stdout.splitlines()] == ["<6>", "<4>", "<3>"]
    assert said("log.info('a')", JOURNAL_STREAM="8:1")[0].startswith("{")


def test_a_flood_is_counted_not_written() -> None:
    """The same warning twenty times a minute; then how many there were. What informs is kept."""
    now = 0.0
    dam = Dam(lambda: now)

    def passes(event: str, level: str = "error") -> structlog.typing.EventDict | None:
        try:
            return dict(dam(None, level, {"event": event, "level": level}))
        except structlog.DropEvent:
            return None

    assert [bool(passes("job_waits")) for _ in range(25)] == [True] * 20 + [False] * 5
    assert passes("other")
    assert all(passes("listening", "info") for _ in range(100))
    now = 61.0
    assert passes("job_waits") == {"event": "job_waits", "level": "error", "suppressed": 5}
    assert passes("job_waits") == {"event": "job_waits", "level": "error"}
