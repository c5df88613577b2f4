"""``dapd task`` as an operator types it, while no daemon runs."""

from __future__ import annotations

import json
import secrets
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from dapd.crypto import hash_token, make_sealer
from dapd.datastore import Tx, chunks, open_for_command
from dapd.datastore import tasks as table
from dapd.datastore.chunks import Place
from dapd.protocol.batches import time_bucket
from dapd.taskfile import HelperTask, LeaderTask, TaskFile, read_task_file
from tests.cli.typed import Run

WEEKS = 4 * 7 * 86_400
LONG_AGO = 1000
"""A time of day in 1970: expired under every age that a test would set."""
GROUP = "task"


@pytest.fixture
def new(run: Run, tmp_path: Path) -> Callable[..., Path]:
    """``dapd task new`` with more options; the directory of the files."""

    def make(*options: object) -> Path:
        out = tmp_path / secrets.token_hex(4)
        status, said = run(
            "new", "--vdaf", "count", "--batch-mode", "time-interval", "--time-precision", 3600,
            "--min-batch-size", 2, "--leader", "https://leader.example/",
            "--helper", "https://helper.example/", "--out", out, *options,
        )  # fmt: skip
        assert status == 0, said
        return out

    return make


def ok(answer: tuple[int, str]) -> str:
    status, said = answer
    assert status == 0, said
    return said


def refusal(answer: tuple[int, str]) -> str:
    status, said = answer
    assert status == 2, said
    assert len(said.splitlines()) == 1
    return said


def only(run: Run) -> dict[str, Any]:
    """The one task of the daemon, as programs see it."""
    (task,) = json.loads(ok(run("list", "--json")))
    return dict(json.loads(ok(run("show", task["task_id"], "--json"))))


def change(config: Path, fn: Callable[[Tx], object]) -> None:
    opened = open_for_command(config.parent / "dapd.sqlite", holder="a test", now=0)
    opened.datastore.run_sync(fn)
    opened.close()


@pytest.mark.parametrize(
    ("options", "leaders", "helpers"),
    [
        ((), WEEKS, WEEKS + 86_400),
        (("--report-expiry-age", 7200), 7200, 93_600),
        (("--reports-never-expire",), None, None),
    ],
)
def test_d6_both_files_say_how_long_reports_are_kept(
    new: Callable[..., Path],
    run: Run,
    options: tuple[object, ...],
    leaders: int | None,
    helpers: int | None,
) -> None:
    """D6: the Helper keeps them a day longer; `task add` takes it from the file."""
    for role in ("leader", "helper"):
        ok(run("add", new(*options) / f"{role}.toml"))
    told = json.loads(ok(run("list", "--json")))
    assert [each["report_expiry_age"] for each in told] == [leaders, helpers]


def test_a_task_made_from_a_helpers_file_gets_a_leader_that_keeps_less(
    new: Callable[..., Path], run: Run, tmp_path: Path
) -> None:
    """Whoever's file it is, an age given as option is the Leader's."""
    helper = tmp_path / "what-they-chose.toml"
    helper.write_text('role = "helper"\nreport_expiry_age = 93600\n')
    assert _age(new("--from", helper) / "leader.toml") == 7200
    again = new("--from", helper, "--report-expiry-age", 100)
    assert (_age(again / "leader.toml"), _age(again / "helper.toml")) == (100, 86_500)
    both = ("--report-expiry-age", 1, "--reports-never-expire")
    assert "not both" in refusal(run("new", "--out", tmp_path / "x", *both))


def test_new_names_the_options_that_are_missing(run: Run, tmp_path: Path) -> None:
    """All of them at once; a file may have some."""
    chosen = tmp_path / "what-they-chose.toml"
    chosen.write_text('batch_mode = "time-interval"\ntime_precision = 60\n')
    arguments = ("--from", chosen, "--vdaf", "count", "--min-batch-size", 2, "--out", tmp_path)
    assert "missing: --leader, --helper; " in refusal(run("new", *arguments))


def test_a_tasks_life_as_the_commands_tell_it(new: Callable[..., Path], run: Run) -> None:
    """Each line says what is now; `list` hides what is gone, but never what still has rows."""
    file = new() / "leader.toml"
    assert ok(run("add", file)).startswith("Added task")
    assert "exists already, as its Leader; it is active." in ok(run("add", file))
    task_id = only(run)["task_id"]
    for command, state in (("drain", "draining"), ("disable", "disabled"), ("enable", "active")):
        assert f"is now {state}." in ok(run(command, task_id[:6]))
        assert f"is already {state}." in ok(run(command, task_id))
        assert only(run)["state"] == state
        assert f"leader  {state:8}  time-interval    count" in ok(run("list"))
    assert f"Deleted task {task_id}; the daemon" in ok(run("delete", task_id))
    assert only(run)["expired_before"] is not None
    assert "still being deleted" in refusal(run("add", file))


@pytest.mark.parametrize("option", ["--batch-target-size", "--report-expiry-age"])
def test_a_setting_that_sqlite_cannot_store_is_refused(
    new: Callable[..., Path], run: Run, option: str
) -> None:
    """The refusal is one line and changes nothing; 2^63-1 is accepted."""
    run("add", new() / "leader.toml")
    before = only(run)
    assert "at most 2^63-1" in refusal(run("set", before["task_id"], option, 2**63))
    assert only(run) == before
    ok(run("set", before["task_id"], option, 2**63 - 1))


def test_a_tombstone_is_shown_when_asked_for(
    new: Callable[..., Path], run: Run, config: Path
) -> None:
    """It is in nobody's way, and says until when its task took reports."""
    file = new() / "helper.toml"
    ok(run("add", file))
    task_id = only(run)["task_id"]
    ok(run("delete", task_id))
    change(config, lambda tx: table.purge(tx, 1))
    assert "No tasks yet" in ok(run("list"))
    assert f"{task_id}  helper  purged" in ok(run("list", "--all"))
    assert "purged" in ok(run("show", task_id))
    assert "is deleted" in refusal(run("token", "list", task_id))
    assert "as its Helper" in ok(run("add", file))
    assert only(run)["state"] == "active"


def test_what_is_uncollected_is_shown_and_holds_up_a_delete(
    new: Callable[..., Path], run: Run, config: Path
) -> None:
    """`collect_before` is in ISO 8601, and how far off for people; `--discard` gives it up."""
    ok(run("add", new("--reports-never-expire") / "leader.toml"))
    assert (only(run)["collect_before"], only(run)["uncollected"]["waiting"]) == (None, 0)
    change(config, _store_reports)
    told = only(run)
    assert told["uncollected"] == {"waiting": 3, "aggregated": 2, "jobs": 0, "collections": 0}
    assert told["collect_before"] is None  # never
    assert "uncollected_waiting              3" in ok(run("show", told["task_id"]))
    assert "3 reports to be aggregated" in refusal(run("delete", told["task_id"]))
    ok(run("set", told["task_id"], "--report-expiry-age", 200 * 365 * 86_400))
    assert only(run)["collect_before"] == "2169-12-24T17:00:00Z"
    assert " days)" in ok(run("show", told["task_id"]))
    assert "Discarded 5 uncollected reports." in ok(run("delete", told["task_id"], "--discard"))


def test_a9_new_tokens(new: Callable[..., Path], run: Run, tmp_path: Path) -> None:
    """Printed once, to standard output alone; known by the first digits of their SHA-256."""
    leader, helper = (new() / f"{role}.toml" for role in ("leader", "helper"))
    ok(run("add", leader))
    ok(run("add", helper))
    ids = {each["role"]: each["task_id"] for each in json.loads(ok(run("list", "--json")))}
    token, hint = ok(run("token", "add", ids["helper"])).splitlines()
    assert "dapd task token use" in hint
    shown = hash_token(token).hex()[:8]
    listed = ok(run("token", "list", ids["helper"]))
    assert f"{shown}  accepted from the Leader, the newer one" in listed
    assert token not in listed
    given = tmp_path / "token"
    given.write_text(f"{token}\n")
    ok(run("token", "use", ids["leader"], "--file", given))
    told = json.loads(ok(run("token", "list", ids["leader"], "--json")))
    assert (told["outbound"], len(told["inbound"])) == (shown, 1)
    assert "is no longer accepted" in ok(run("token", "remove", ids["helper"]))
    listed = ok(run("token", "list", ids["helper"]))
    assert f"{shown}  accepted from the Leader, the only one" in listed
    given.write_text("two words")
    assert "not a token" in refusal(run("token", "use", ids["leader"], "--file", given))


def test_f2_an_unreadable_task_is_listed_and_gets_its_secrets_again(
    new: Callable[..., Path], run: Run, config: Path
) -> None:
    """F2: one lost key breaks no command; each says what would help."""
    file = new() / "leader.toml"
    ok(run("add", file))
    before = only(run)
    lost = make_sealer([bytes(32)]).seal(b"", b"")
    change(config, lambda tx: tx.execute("UPDATE tasks SET verify_key = :lost", lost=lost))
    remedy = "dapd task rekey FILE"
    assert "leader  active    unreadable: its secrets" in ok(run("list"))
    assert remedy in ok(run("list"))
    assert remedy in only(run)["unreadable"]
    assert remedy in refusal(run("add", file))
    assert "accepted from the Collector" in ok(run("token", "list", before["task_id"]))
    assert "Restored the secrets" in ok(run("rekey", file))
    assert only(run) == before
    assert "has all its secrets" in refusal(run("rekey", file))


def test_a_task_of_another_version_is_listed(
    new: Callable[..., Path], run: Run, config: Path
) -> None:
    """With all that can be said of it."""
    ok(run("add", new() / "leader.toml"))
    change(config, lambda tx: tx.execute("UPDATE tasks SET dap_version = 'dap-19'"))
    assert "unreadable: its version is dap-19" in ok(run("list"))
    task_id = only(run)["task_id"]
    assert "run a dapd that speaks dap-19" in refusal(run("drain", task_id))


def _age(file: Path) -> object:
    read: TaskFile = read_task_file(file)
    assert isinstance(read, LeaderTask | HelperTask)
    return read.report_expiry_age


def _store_reports(tx: Tx) -> None:
    """Three that wait and two that are aggregated, long ago."""
    place = Place(1, 1, time_bucket(LONG_AGO), 0)
    chunk = (3, LONG_AGO, LONG_AGO, bytes(48), bytes(12), b"")
    chunks.insert(tx, place, chunk)
    tx.execute(
        "INSERT INTO batch_shares (task_pk, bucket, job_id, n, checksum, time_min, time_max, share)"
        " VALUES (1, :bucket, x'00', 2, x'', :time, :time, x'')",
        bucket=time_bucket(LONG_AGO + 1),
        time=LONG_AGO + 1,
    )
