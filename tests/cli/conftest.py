"""Commands as they are typed, with a configuration of their own."""

from __future__ import annotations

from pathlib import Path

import pytest

from dapd.cli import main
from tests.cli.typed import Run
from tests.contexts import make_config


@pytest.fixture
def config(tmp_path: Path) -> Path:
    """A configuration; its database is made by the first command."""
    make_config(tmp_path)
    path = tmp_path / "dapd.toml"
    path.write_text('[datastore]\npath = "dapd.sqlite"\nsealing_keys = ["sealing.key"]\n')
    return path


@pytest.fixture
def run(config: Path, request: pytest.FixtureRequest, capsys: pytest.CaptureFixture[str]) -> Run:
    """``dapd GROUP ARGUMENTS``, of the group that the test's module names: the exit status, and all
    that it says.
    """

    def command(*arguments: object) -> tuple[int, str]:
        with pytest.raises(SystemExit) as exit_:
            main(["--config", str(config), request.module.GROUP, *map(str, arguments)])
        assert isinstance(exit_.value.code, int)
        said = capsys.readouterr()
        assert "Traceback" not in said.err
        return exit_.value.code, said.out + said.err

    return command
