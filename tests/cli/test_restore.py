"""``dapd restore`` as an operator types it, while no daemon runs."""

from __future__ import annotations

from pathlib import Path

import pytest

from dapd.cli import main


def typed(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    """What a command says that succeeds."""
    with pytest.raises(SystemExit) as exit_:
        main([*map(str, arguments)])
    said = capsys.readouterr()
    assert exit_.value.code == 0, said.err
    return said.out


def test_what_a_restore_has_closed_is_said_at_once_and_of_tasks_added_later(
    config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """D6: the file may have forgotten reports of every task, also of one that it does not know."""
    for name, precision in (("known", 86_400), ("new", 86_400), ("coarse", 2**64 - 1)):
        typed(
            capsys, "task", "new", "--vdaf", "count", "--batch-mode", "time-interval",
            "--time-precision", precision, "--min-batch-size", 2, "--leader", "https://leader.example/",
            "--helper", "https://helper.example/", "--out", tmp_path / name,
        )  # fmt: skip
    added = typed(capsys, "--config", config, "task", "add", tmp_path / "known/leader.toml")
    assert "restored" not in added
    copies = tmp_path / "copies"
    copies.mkdir()
    typed(capsys, "--config", config, "backup", copies)
    (copy,) = copies.iterdir()
    restored = typed(capsys, "--config", config, "restore", "--yes", copy)
    (line,) = [line for line in restored.splitlines() if line.startswith("Task ")]
    assert line.endswith(" are dropped")
    added = typed(capsys, "--config", config, "task", "add", tmp_path / "new/leader.toml")
    assert "This database was restored: reports until " in added
    added = typed(capsys, "--config", config, "task", "add", tmp_path / "coarse/leader.toml")
    assert "This database was restored: reports until 9999-12-31 " in added
