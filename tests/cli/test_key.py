"""``dapd key`` as an operator types it, while no daemon runs."""

from __future__ import annotations

import hashlib
import json
import secrets
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from dapd.commits import hpke_keys
from dapd.commits.helper_jobs import store_job
from dapd.config.loading import load
from dapd.crypto import make_sealer
from dapd.datastore import Datastore, Tx, keys, open_for_command, safe_clock
from dapd.datastore import tasks as task_table
from dapd.datastore.helper_jobs import JobKey
from dapd.datastore.safe_clock import StoredClock
from dapd.protocol.keys import MANDATORY_SUITE
from dapd.protocol.task import MAX_INTEGER, TaskSettings
from tests.cli.typed import Run
from tests.clock import NOW, TIME
from tests.contexts import add_task
from tests.task_pair import SEALING_KEY, leader_job, make_reports, task_pair

SEALER = make_sealer([SEALING_KEY])
LONG = 10**13
"""Milliseconds: three centuries."""
GROUP = "key"


def in_datastore(config: Path, do: Callable[[Datastore], Any]) -> None:
    opened = open_for_command(load(config).datastore.path, holder="a test", now=NOW)
    do(opened.datastore)
    opened.close()


def listed(run: Run) -> dict[int, dict[str, Any]]:
    status, said = run("list", "--json")
    assert status == 0, said
    return {each["config_id"]: each for each in json.loads(said)}


def test_an_empty_database_has_no_key_yet(run: Run) -> None:
    """The line says where the first one comes from."""
    status, said = run("list")
    assert status == 0
    assert "when it starts" in said
    assert listed(run) == {}


def test_a_key_from_add_to_remove(run: Run, config: Path) -> None:
    """Each command says what it did, ``list`` what comes next, and when."""
    assert run("add", "--active")[0] == 0
    status, said = run("add")
    assert status == 0
    assert "Made key 1 (x25519-aes128), pending" in said
    found = listed(run)
    assert [found[n]["state"] for n in (0, 1)] == ["active", "pending"]
    assert (found[1]["next_state"], found[0]["next_state"]) == ("active", "expired")
    assert found[1]["next_at"] == found[0]["next_at"]
    status, said = run("promote", 1)
    assert status == 0
    assert "Key 1 is active, key 0 expired" in said
    status, said = run("remove", 0)
    assert status == 2
    assert "may still open reports" in said
    in_datastore(config, lambda store: store.run_sync(safe_clock.store, StoredClock(LONG)))
    assert run("remove", 0)[0] == 0
    assert list(listed(run)) == [1]
    status, said = run("remove", 0)
    assert status == 2
    assert "there is no key 0" in said


def test_a_pending_key_is_removed_and_another_suite_retired(run: Run) -> None:
    """A suite of its own is published beside the other, and taken back."""
    run("add", "--active")
    assert run("add")[0] == 0
    assert run("remove", 1)[0] == 0
    assert run("add", "--suite", "p256-aes128", "--active")[0] == 0
    found = listed(run)
    assert {each["suite"]: each["state"] for each in found.values()} == {
        "x25519-aes128": "active",
        "p256-aes128": "active",
    }
    assert run("expire", 2)[0] == 0
    assert listed(run)[2]["state"] == "expired"


def test_the_last_active_key_stays(run: Run) -> None:
    """Whatever is tried: the refusal says what to do first."""
    run("add", "--active")
    for arguments in (("expire", 0), ("remove", 0, "--compromised")):
        status, said = run(*arguments)
        assert status == 2
        assert said.count("\n") == 1
        assert "`dapd key add --active`" in said
    assert "`dapd key expire 0` first" in run("remove", 0)[1]


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (("promote", 0), "key 0 is active already"),
        (("promote", 7), "there is no key 7"),
        (("expire", 1), "key 1 is pending"),
        (("add",), "`dapd key promote 1`"),
    ],
)
def test_what_makes_no_sense_is_refused_in_a_line(
    run: Run, arguments: tuple[object, ...], reason: str
) -> None:
    """One line that names the key and the way out; nothing changes."""
    run("add", "--active")
    run("add")
    before = listed(run)
    status, said = run(*arguments)
    assert status == 2
    assert reason in said
    assert said.count("\n") == 1
    assert listed(run) == before


def test_f1_list_says_that_reports_which_never_expire_keep_every_key(
    run: Run, config: Path
) -> None:
    """It names a task, and the command that changes it."""
    run("add", "--active")
    run("add", "--active")
    assert "expired" in run("list")[1]
    assert "kept for ever" not in run("list")[1]
    task = task_pair(settings=TaskSettings(report_expiry_age=None)).helper
    in_datastore(config, lambda store: store.run_sync(task_table.insert, task, SEALER))
    said = run("list")[1]
    assert "kept for ever" in said
    assert f"reports of task {task.id_text} never expire" in said
    assert listed(run)[0]["next_at"] is None


def test_f1_list_shows_no_date_for_what_comes_after_all_dates(run: Run, config: Path) -> None:
    """Reports that expire after the year 9999 keep a key until then."""
    run("add", "--active")
    run("add", "--active")
    task = task_pair(settings=TaskSettings(report_expiry_age=MAX_INTEGER)).helper
    in_datastore(config, lambda store: store.run_sync(task_table.insert, task, SEALER))
    assert "kept for ever" in run("list")[1]
    assert listed(run)[0]["next_at"] is None


def test_remove_compromised_says_how_many_queued_reports_it_costs(run: Run, config: Path) -> None:
    """A Helper's received jobs, and of these only those that name the key."""
    pair = task_pair()

    def fill(store: Datastore) -> None:
        task = add_task(store, pair.helper, pair)  # its key is number 2
        for count in (3, 4):
            body = leader_job(pair, make_reports(pair, [1] * count)).body
            digest, lease = hashlib.sha256(body).digest(), secrets.token_bytes(16)
            key = JobKey(task.task_pk, secrets.token_bytes(16), digest, count, b"", lease, TIME)
            store.run_sync(store_job, key, body, NOW)

    in_datastore(config, fill)
    assert run("add", "--active")[0] == 0
    assert run("add", "--active")[0] == 0
    status, said = run("remove", 0, "--compromised")
    assert status == 0
    assert "at most 0 reports" in said
    status, said = run("remove", 2, "--compromised")
    assert status == 0
    assert "at most 7 reports" in said

    def private_key(tx: Tx) -> list[tuple[Any, ...]]:
        return tx.all("SELECT private_key FROM hpke_keypairs WHERE config_id = 2")

    def check(store: Datastore) -> None:
        assert store.read_sync(private_key) == [(b"",)]
        assert [kept.config_id for kept in store.read_sync(keys.kept_keypairs)] == [1]

    in_datastore(config, check)


def test_d6_a_command_dates_a_move_by_the_later_clock(run: Run, config: Path) -> None:
    """A key that expires while the safe clock stands in the past is not deleted too early."""
    in_datastore(config, lambda store: store.run_sync(safe_clock.store, StoredClock(LONG)))
    run("add", "--active")
    assert listed(run)[0]["since"].startswith("2286")
    in_datastore(config, lambda store: store.run_sync(safe_clock.store, StoredClock(0)))
    run("add", "--active")
    assert listed(run)[1]["since"] > "2026"
    in_datastore(
        config,
        lambda store: store.run_sync(
            hpke_keys.add, SEALER, MANDATORY_SUITE, LONG, load(config), active=False
        ),
    )
    assert run("promote", 2)[0] == 0
