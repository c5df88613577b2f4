"""``dapd upload`` and ``dapd collect`` as an operator types them, against scripted Aggregators.

The commands run in a thread, as programs of their own would: they start a Trio of their own.
"""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from pathlib import Path

import pytest
import trio

from dapd.cli import main
from dapd.protocol.task import END_OF_TIME
from dapd.taskfile import write_task_files
from tests.raw_http import Request, answer
from tests.scripted_aggregators import ScriptedAggregators, beyond_loopback, make_task
from tests.scripted_server import ScriptedServer
from tests.test_collector import Batch


async def run(*arguments: str | Path) -> int:
    """The exit status of a command."""

    def command() -> int:
        with pytest.raises(SystemExit) as exit_:
            main([str(argument) for argument in arguments])
        assert isinstance(exit_.value.code, int)
        return exit_.value.code

    return await trio.to_thread.run_sync(command)


@pytest.fixture
async def aggregators(nursery: trio.Nursery, tmp_path: Path) -> ScriptedAggregators:
    made = ScriptedAggregators(too_early_after=END_OF_TIME)
    write_task_files(tmp_path, await made.serve(nursery))
    return made


async def test_upload_takes_measurements_from_the_command_line(
    aggregators: ScriptedAggregators, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The last line says how many have arrived."""
    assert await run("upload", "--task", tmp_path / "client.toml", "3", "0", "1") == 0
    assert capsys.readouterr().out == "Uploaded 3 reports, 0 rejected.\n"
    assert aggregators.accepted == 3


async def test_upload_takes_measurements_from_standard_input(
    aggregators: ScriptedAggregators, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One a line; empty lines don't count."""
    monkeypatch.setattr("sys.stdin", io.StringIO("1\n\n2\n3"))
    assert await run("upload", "--task", tmp_path / "client.toml") == 0
    assert aggregators.accepted == 3


@pytest.mark.parametrize("bad", ["4", "-1", "x", "1,2"])
async def test_upload_says_which_measurement_is_wrong(
    aggregators: ScriptedAggregators, tmp_path: Path, capsys: pytest.CaptureFixture[str], bad: str
) -> None:
    """One line, exit status 2, and what was delivered before."""
    arguments = ("--task", tmp_path / "client.toml", "--batch-size", "1")
    assert await run("upload", *arguments, "1", bad) == 2
    [line] = capsys.readouterr().err.splitlines()
    assert line == (
        f"dapd: measurement 2: '{bad}' is not a bucket; use 0 to 3; delivered before: 1 report"
    )
    assert aggregators.accepted == 1


async def test_upload_tells_rejected_reports(
    aggregators: ScriptedAggregators, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Exit status 1, and the draft's reason for each."""
    aggregators.too_early_after = 0
    assert await run("upload", "--task", tmp_path / "client.toml", "1") == 1
    captured = capsys.readouterr()
    assert captured.err == "measurement 1: report_too_early\n"
    assert captured.out == "Uploaded 0 reports, 1 rejected.\n"


async def collecting(
    nursery: trio.Nursery,
    tmp_path: Path,
    mode: str,
    named: Callable[[str], str] = str,
    *,
    on_delete: Callable[[], None] = lambda: None,
    **keys: object,
) -> ScriptedServer:
    def script(request: Request) -> bytes:
        if request.method == "DELETE":
            on_delete()
            return answer(200)
        return Batch().answer(files.collector, request.body)

    peer = ScriptedServer(script)
    files = make_task(named(await peer.serve(nursery)), batch_mode=mode, **keys)
    write_task_files(tmp_path, files)
    return peer


async def test_collect_draws_a_histogram(
    nursery: trio.Nursery, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A bar a bucket, and what the result is of."""
    await collecting(nursery, tmp_path, "time-interval")
    interval = ("--interval", "1970-01-01T01:00Z", "3600")
    assert await run("collect", "--task", tmp_path / "collector.toml", *interval) == 0
    assert capsys.readouterr().out.splitlines() == [
        "0 3 " + "█" * 25,
        "1 0",
        "2 1 " + "█" * 8,
        "3 6 " + "█" * 50,
        "10 reports from 1970-01-01T01:06:40Z to 1970-01-01T01:10:00Z",
    ]


async def test_collect_shows_times_for_which_there_is_no_date(
    nursery: trio.Nursery, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A time precision may be longer than 9999 years."""
    precision = 2**60
    await collecting(nursery, tmp_path, "time-interval", time_precision=precision)
    interval = ("--interval", str(36 * precision), str(36 * precision))
    assert await run("collect", "--task", tmp_path / "collector.toml", *interval) == 0
    last = capsys.readouterr().out.splitlines()[-1]
    assert last == f"10 reports from {40 * precision} s to {42 * precision} s"


async def test_a8_next_batch_prints_before_the_leader_may_forget(
    nursery: trio.Nursery, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Killed between the two, the command prints the same batch the next time."""
    printed: list[str] = []
    await collecting(
        nursery,
        tmp_path,
        "leader-selected",
        on_delete=lambda: printed.append(capsys.readouterr().out),
    )
    arguments = ("--task", tmp_path / "collector.toml", "--next-batch", "--json")
    assert await run("collect", *arguments) == 0
    [line] = printed
    assert json.loads(line) == {
        "value": [3, 0, 1, 6],
        "report_count": 10,
        "start": 4000,
        "duration": 200,
    }


@pytest.mark.parametrize(
    "which",
    [
        (),
        ("--next-batch", "--interval", "3600", "3600"),
        ("--next-batch",),
        ("--interval", "3601", "3600"),
        ("--interval", "3600", "an-hour"),
        ("--interval", "yesterday", "3600"),
    ],
)
async def test_collect_refuses_what_is_no_batch_of_the_task(
    nursery: trio.Nursery,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    which: tuple[str, ...],
) -> None:
    """One line, exit status 2, nothing sent."""
    peer = await collecting(nursery, tmp_path, "time-interval")
    assert await run("collect", "--task", tmp_path / "collector.toml", *which) == 2
    assert len(capsys.readouterr().err.splitlines()) == 1
    assert not peer.requests


async def test_b7_http_beyond_loopback_needs_a_flag(
    nursery: trio.Nursery, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The reports and the token would travel unencrypted; one line names the flag."""
    made = ScriptedAggregators(too_early_after=END_OF_TIME)
    await made.serve(nursery)
    made.files = make_task(beyond_loopback(made.server.url))
    write_task_files(tmp_path / "client", made.files)
    upload = ("upload", "--task", tmp_path / "client/client.toml", "1")
    peer = await collecting(nursery, tmp_path / "collector", "time-interval", beyond_loopback)
    query = ("--interval", "3600", "3600")
    collect = ("collect", "--task", tmp_path / "collector/collector.toml", *query)
    for command in (upload, collect):
        assert await run(*command) == 2
        [line] = capsys.readouterr().err.splitlines()
        assert "use https://, or give --allow-insecure-http" in line
    assert not made.server.requests
    assert not peer.requests
    for command in (upload, collect):
        assert await run(*command, "--allow-insecure-http") == 0


async def test_a_missing_task_file_is_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """It says what to do."""
    for command in (("upload",), ("collect", "--next-batch")):
        assert await run(*command, "--task", tmp_path / "none.toml") == 2
        assert "no such file" in capsys.readouterr().err
