"""``dapd datastore`` as an operator types it, while no daemon runs."""

from __future__ import annotations

import json
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from dapd.cli import main
from dapd.commits.sealing_keys import check_sealing_keys
from dapd.commits.tasks import add_task
from dapd.config.keyfiles import read_sealing_keys
from dapd.config.loading import load
from dapd.crypto import make_sealer, sealing_key_id
from dapd.datastore import Datastore, Tx, sealed
from tests.cli.typed import Run
from tests.contexts import make_config, open_store
from tests.task_pair import SEALING_KEY, task_pair

OLD = sealing_key_id(SEALING_KEY).hex()
GROUP = "datastore"


@pytest.fixture
def config(tmp_path: Path) -> Path:
    """A configuration with one sealing key, whose database has one task."""
    make_config(tmp_path)
    path = tmp_path / "dapd.toml"
    use_keys(path, "sealing.key")
    with opened(path) as store:
        store.run_sync(check_sealing_keys, [sealing_key_id(SEALING_KEY)])
        store.run_sync(add_task, task_pair().leader, make_sealer([SEALING_KEY]))
    return path


def use_keys(config: Path, *files: str) -> None:
    listed = ", ".join(f'"{file}"' for file in files)
    config.write_text(f'[datastore]\npath = "dapd.sqlite"\nsealing_keys = [{listed}]\n')


@contextmanager
def opened(config: Path) -> Iterator[Datastore]:
    store = open_store(config.parent / "dapd.sqlite")
    try:
        yield store.datastore
    finally:
        store.close()


def key_ids(config: Path) -> list[str]:
    """Of the configured keys."""
    return [sealing_key_id(key).hex() for key in read_sealing_keys(load(config))]


def test_a_new_key_is_a_file_for_its_owner_alone(config: Path, run: Run) -> None:
    """Never over another key; and the next steps are said."""
    file = config.parent / "sealing-2.key"
    status, said = run("new-key", file)
    assert status == 0
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    use_keys(config, "sealing.key", "sealing-2.key")
    assert key_ids(config)[1] in said
    assert "restart" in said
    before = file.read_text()
    status, said = run("new-key", file)
    assert (status, file.read_text()) == (2, before)
    assert "name a new file" in said


def test_keys_says_which_key_seals_what(config: Path, run: Run) -> None:
    """Also of one that is missing: what to do about it."""
    values = {"tasks.verify_key": 1, "tasks.aggregator_token": 1}
    status, said = run("keys")
    assert status == 0
    assert said == f"{OLD}  seals    tasks.verify_key 1, tasks.aggregator_token 1\n"
    run("new-key", config.parent / "new.key")
    use_keys(config, "new.key", "sealing.key")
    new = key_ids(config)[0]
    assert json.loads(run("keys", "--json")[1]) == [
        {"key": new, "state": "seals", "values": {}},
        {"key": OLD, "state": "opens", "values": values},
    ]
    use_keys(config, "new.key")
    status, said = run("keys")
    assert status == 0
    assert f"{OLD}  missing" in said
    assert f"forget-key {OLD}" in said


def test_a_lost_key_is_forgotten_after_a_question(
    config: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is lost is said first; a "no" changes nothing."""
    run("new-key", config.parent / "new.key")
    use_keys(config, "new.key")
    monkeypatch.setattr("click.termui.visible_prompt_func", lambda _: "n")
    status, said = run("forget-key", OLD)
    assert status == 130
    assert "1 verification keys: the task stops until `dapd task rekey FILE`" in said
    with opened(config) as store:
        assert len(store.read_sync(sealed.sealing_key_ids)) == 1
    status, said = run("forget-key", OLD, "--yes")
    assert status == 0
    assert "Forgot key" in said
    status, said = run("forget-key", OLD, "--yes")
    assert status == 2
    assert "nothing is sealed with key" in said
    status, said = run("check")
    assert status == 1
    assert "dapd task rekey FILE" in said


def test_a_configured_key_is_not_forgotten(run: Run) -> None:
    """Nor anything that is no key's id."""
    status, said = run("forget-key", OLD, "--yes")
    assert status == 2
    assert "is in [datastore] sealing_keys" in said
    for wrong in ("0278", "not hexadecimal", "00" * 9):
        status, said = run("forget-key", wrong, "--yes")
        assert status == 2
        assert "16 hexadecimal digits" in said


def test_e5_no_key_is_forgotten_beside_a_daemon(config: Path, run: Run) -> None:
    """Who holds the file is said; looking is allowed."""
    run("new-key", config.parent / "new.key")
    use_keys(config, "new.key")
    with opened(config):
        status, said = run("forget-key", OLD, "--yes")
        assert status == 2
        assert "is held by a test; stop it first" in said
        assert run("check") == (0, "ok\n")
        assert run("keys")[0] == 0


def test_check_says_ok_or_what_is_wrong(config: Path, run: Run) -> None:
    """One line a finding, with its remedy; the exit status says it too."""
    assert run("check") == (0, "ok\n")
    assert json.loads(run("check", "--json")[1]) == []

    def damage(tx: Tx) -> None:
        tx.execute("INSERT INTO task_counters VALUES (1, 'aggregate_lost', 3)")

    with opened(config) as store:
        store.run_sync(damage)
    status, said = run("check")
    assert status == 1
    assert said.startswith("task_counters 1 (task_pk): some accepted reports are neither ")
    assert said.count("\n") == 1
    status, said = run("check", "--json")
    assert status == 1
    assert [each["table"] for each in json.loads(said)] == ["task_counters"]


def test_there_is_nothing_to_look_at_before_the_first_start(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """No command makes a database by looking at it."""
    make_config(tmp_path)
    path = tmp_path / "dapd.toml"
    use_keys(path, "sealing.key")
    with pytest.raises(SystemExit) as exit_:
        main(["--config", str(path), "datastore", "check"])
    assert exit_.value.code == 2
    assert "no database yet" in capsys.readouterr().err
    assert not (tmp_path / "dapd.sqlite").exists()
