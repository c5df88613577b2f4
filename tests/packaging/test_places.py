"""Where a command finds the configuration, and where that says everything else is (ADR 0022)."""

from __future__ import annotations

from pathlib import Path

import pytest

from dapd.cli.paths import find_config, usual_places
from dapd.config import Config, Datastore
from dapd.config.loading import in_place
from dapd.errors import UsageError

KEYS = (Path("/keys/k"),)


@pytest.fixture(autouse=True)
def nowhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An environment that names no place, and a home without one."""
    for name in ("DAPD_CONFIG", "CONFIGURATION_DIRECTORY", "XDG_CONFIG_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))


def test_places_are_looked_at_in_order(tmp_path: Path) -> None:
    """The service's own, the user's, the system's."""
    environment = {"CONFIGURATION_DIRECTORY": "/etc/a:/etc/b", "XDG_CONFIG_HOME": "/x"}
    system = Path("/etc/dapd/dapd.toml")
    assert usual_places(environment, root=False) == [
        Path("/etc/a/dapd.toml"),
        Path("/x/dapd/dapd.toml"),
        system,
    ]
    assert usual_places({"XDG_CONFIG_HOME": "relative"}, root=False) == [
        tmp_path / "home/.config/dapd/dapd.toml",
        system,
    ]
    assert usual_places({"XDG_CONFIG_HOME": "/x"}, root=True) == [system]
    assert usual_places({**environment, "DAPD_CONFIG": "/c"}, root=False) == [Path("/c")]


def test_what_is_named_is_taken_without_looking(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By ``--config``, else by ``DAPD_CONFIG``: a typo must not find another daemon's."""
    monkeypatch.setenv("DAPD_CONFIG", str(tmp_path / "none.toml"))
    assert find_config(Path("given")) == Path("given")
    with pytest.raises(UsageError, match=r"none\.toml; make one with `dapd init`"):
        find_config(None)


def test_a_missing_configuration_says_where_was_looked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And how to make one."""
    monkeypatch.setenv("CONFIGURATION_DIRECTORY", str(tmp_path))
    monkeypatch.setattr("dapd.cli.paths.SYSTEM_CONFIG", tmp_path / "etc/dapd.toml")
    with pytest.raises(UsageError) as caught:
        find_config(None)
    assert str(tmp_path / "dapd.toml") in str(caught.value)
    assert str(tmp_path / "etc/dapd.toml") in str(caught.value)
    assert "`dapd init`" in str(caught.value)


def test_a_service_keeps_its_state_where_systemd_makes_it() -> None:
    """/etc/NAME, /var/lib/NAME: for every command alike, whatever its environment."""
    config = in_place(Config(datastore=Datastore(sealing_keys=KEYS)), Path("/etc/dapd-2"))
    assert config.datastore.path == Path("/var/lib/dapd-2/dapd.sqlite")
    assert config.admin_socket == Path("/var/lib/dapd-2/dapd.sqlite.admin"), "no /run/dapd-2"


def test_the_socket_is_in_the_runtime_directory_if_there_is_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The state directory is closed to the group that may use the socket."""
    monkeypatch.setattr(Path, "is_dir", lambda self: str(self) == "/run/dapd-2")
    config = in_place(Config(datastore=Datastore(sealing_keys=KEYS)), Path("/etc/dapd-2"))
    assert config.admin_socket == Path("/run/dapd-2/admin.sock")


def test_elsewhere_all_is_beside_the_configuration(tmp_path: Path) -> None:
    """As `dapd init --dir` lays it out."""
    config = in_place(Config(datastore=Datastore(sealing_keys=KEYS)), tmp_path)
    assert config.datastore.path == tmp_path / "state/dapd.sqlite"
    assert config.admin_socket == tmp_path / "state/dapd.sqlite.admin"


def test_what_is_configured_stays() -> None:
    """The defaults only fill in."""
    given = Config(datastore=Datastore(path=Path("/data/d"), sealing_keys=KEYS))
    assert in_place(given, Path("/etc/dapd-2")).datastore.path == Path("/data/d")
