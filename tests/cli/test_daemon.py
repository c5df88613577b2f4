"""How a command reaches the daemon: what it says when that fails (rule E5)."""

from __future__ import annotations

import socket
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import msgspec
import pytest
import trio

from dapd.admin.clock import ACCEPT, SHOW, ClockView, view
from dapd.admin.operation import Nothing
from dapd.cli.daemon import NoDaemon, ask, call
from dapd.config import Admin, Config
from dapd.datastore import Datastore
from dapd.errors import DatastoreError, UsageError
from dapd.runtime.clock import SafeClock
from tests.clock import ManualClock
from tests.contexts import make_config, open_store
from tests.pair_harness import open_pair


class Force(msgspec.Struct):
    """A request that no daemon knows."""

    force: bool = True


class Other(msgspec.Struct):
    """A response that no daemon gives."""

    bell: int


def alone(_: Datastore) -> ClockView:
    raise AssertionError("a daemon holds the database")


async def test_blame_comes_back_as_the_exception_that_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A refusal is the operator's, a failure the daemon's, another version neither's."""

    def broken() -> None:
        raise DatastoreError("the disk is gone")

    other: Any = replace(SHOW, response=Other)  # type: ignore[arg-type]
    async with open_pair(tmp_path) as (pair, _):
        told = partial(call, pair.leader.context.config)
        for operation, request, error, says in (
            (replace(SHOW, path="/api/v1/bell"), Nothing(), UsageError, "serves nothing"),
            (SHOW, Force(), UsageError, "force"),
            (ACCEPT, Force(), UsageError, "force"),
            (other, Nothing(), DatastoreError, "of the daemon's version"),
        ):
            with pytest.raises(error, match=says):
                await trio.to_thread.run_sync(told, operation, request)
        monkeypatch.setattr(pair.leader.context.safe_clock, "accept", broken)
        with pytest.raises(DatastoreError, match="the disk is gone"):
            await trio.to_thread.run_sync(told, ACCEPT, Nothing())


async def test_a_socket_set_in_the_configuration_is_the_one(tmp_path: Path) -> None:
    """The database's directory need not be where the group looks."""
    path = tmp_path / "admin.sock"
    async with open_pair(tmp_path, leader={"admin": {"socket": path}}) as (pair, _):
        config = pair.leader.context.config
        assert path.is_socket()
        assert not config.datastore.path.with_name("dapd.sqlite.admin").exists()
        assert (await trio.to_thread.run_sync(call, config, SHOW, Nothing())).held is None


def test_e5_without_a_daemon_a_change_is_made_under_the_lock(tmp_path: Path) -> None:
    """Whoever holds it meanwhile is named, and nothing is changed beside it."""
    config = make_config(tmp_path)
    changed = view(SafeClock(ManualClock(), None, 0).look())
    with pytest.raises(NoDaemon, match="no daemon runs with this configuration"):
        call(config, SHOW, Nothing())
    opened = open_store(config.datastore.path)
    with pytest.raises(DatastoreError, match=r"does not answer on .*\.admin; try again"):
        ask(config, ACCEPT, Nothing(), alone)
    opened.close()

    def change(_: Datastore) -> ClockView:
        with pytest.raises(DatastoreError, match="does not answer"):
            ask(config, ACCEPT, Nothing(), alone)
        return changed

    assert ask(config, ACCEPT, Nothing(), change) is changed


async def test_a_daemon_that_hangs_up_is_no_answer(tmp_path: Path) -> None:
    """Whether it was done can't be known: the command says where to look."""
    config: Config = msgspec.structs.replace(
        make_config(tmp_path), admin=Admin(socket=tmp_path / "s")
    )
    with socket.socket(socket.AF_UNIX) as mute:
        mute.bind(str(config.admin_socket))
        mute.listen(1)
        mute.settimeout(20)

        def hang_up() -> None:
            for _ in range(2):  # whether somebody listens, and the request
                connection, _ = mute.accept()
                connection.close()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(trio.to_thread.run_sync, hang_up)
            with pytest.raises(DatastoreError, match="log says whether it was done"):
                await trio.to_thread.run_sync(call, config, ACCEPT, Nothing())
