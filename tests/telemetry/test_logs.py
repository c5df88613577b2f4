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

from dapd.telemetry.logs import FloodFilter

PROLOGUE = """
import logging, sys, threading, warnings
import structlog
from dapd.telemetry import logs
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


HOSTILE = "\x1b]0;owned\x07\x9b2J\x7f\u202e\nlisten\udc80"


@pytest.mark.parametrize("form", ["json", "human"])
def test_what_is_said_never_drives_a_terminal(form: str) -> None:
    """A peer's words and an exception's are quoted: no control character, no text that runs back;
    and the JSON is lossless.
    """
    code = (
        f"hostile = {HOSTILE!r}\n"
        "try:\n  raise ValueError(hostile)\n"
        "except ValueError as error:\n"
        "  log.warning('job_waits', error=hostile, listed=[hostile], exc_info=error)\n"
    )
    written = "\n".join(said(code, form))
    assert all(each.isprintable() or each == "\n" for each in written)
    assert "owned" in written
    if form == "json":
        (line,) = events([written])
        assert (line["error"], line["listed"]) == (HOSTILE, [HOSTILE])


@pytest.mark.parametrize("form", ["json", "human"])
def test_a_line_carries_its_context(form: str) -> None:
    """Task and job are bound where their work begins; a request's id is made when it is first said,
    and goes with what the request starts.
    """
    code = (
        "import trio\n"
        "from dapd.telemetry.log_context import begin_request\n"
        "async def work(): log.info('inside')\n"
        "async def main():\n"
        "  log.info('outside')\n"
        "  async with trio.open_nursery() as nursery:\n"
        "    async def serve():\n"
        "      begin_request()\n"
        "      with structlog.contextvars.bound_contextvars(task_id='T', job_id='J'):\n"
        "        nursery.start_soon(work)\n"
        "        await trio.lowlevel.checkpoint()\n"
        "      log.info('after')\n"
        "    for _ in range(2): nursery.start_soon(serve)\n"
        "  log.info('outside')\n"
        "trio.run(main)\n"
    )
    lines = said(code, form)
    assert ["task_id" in line for line in lines] == ["inside" in line for line in lines]
    assert ["request_id" in line for line in lines] == ["outside" not in line for line in lines]
    if form == "json":
        ids = {each.get("request_id") for each in events(lines)}
        assert len(ids) == 3
        assert None in ids


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
    flood = FloodFilter(lambda: now)

    def passes(event: str, level: str = "error") -> structlog.typing.EventDict | None:
        try:
            return dict(flood(None, level, {"event": event, "level": level}))
        except structlog.DropEvent:
            return None

    assert [bool(passes("job_waits")) for _ in range(25)] == [True] * 20 + [False] * 5
    assert passes("other")
    assert all(passes("listening", "info") for _ in range(100))
    now = 61.0
    assert passes("job_waits") == {"event": "job_waits", "level": "error", "suppressed": 5}
    assert passes("job_waits") == {"event": "job_waits", "level": "error"}
