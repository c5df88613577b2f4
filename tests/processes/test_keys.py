"""``dapd key`` beside a running daemon: what it publishes and what it opens follow at once (E5)."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import trio

from dapd.messages.common import HpkeConfig, HpkeConfigList
from tests import raw_http
from tests.pair_harness import until
from tests.processes.daemons import SECONDS, DaemonProcess, Wire, assert_calm, run_command


@pytest.fixture
async def daemon(tmp_path: Path, nursery: trio.Nursery) -> DaemonProcess:
    """A running daemon at an address that stays."""
    wire = Wire()
    await wire.serve(nursery)
    made = DaemonProcess(tmp_path / "helper", nursery, wire)
    made.make()
    assert await made.start()
    return made


async def key(daemon: DaemonProcess, *arguments: object) -> str:
    status, stdout, stderr = await run_command("--config", daemon.config, "key", *arguments)
    assert status == 0, stderr
    return stdout


async def published(daemon: DaemonProcess) -> list[HpkeConfig]:
    reply = await raw_http.ask(daemon.wire.port, "GET", "/hpke_config")
    assert reply.headers["cache-control"] == "max-age=86400"
    return list(HpkeConfigList.decode(reply.body).configs)


async def until_published(daemon: DaemonProcess, ids: list[int]) -> None:
    """Ask until these are served."""

    async def served() -> bool:
        return [config.id for config in await published(daemon)] == ids

    await until(served)


async def test_e5_f1_keys_that_a_command_changes_are_served_without_a_restart(
    daemon: DaemonProcess,
) -> None:
    """Added, promoted, removed: the daemon looks once a second, and never serves no key."""
    with trio.fail_after(SECONDS):
        (first,) = await published(daemon)
        await key(daemon, "add", "--active")
        await until_published(daemon, [first.id + 1])
        await key(daemon, "add", "--suite", "p256-aes128")
        await key(daemon, "promote", first.id + 2)
        await until_published(daemon, [first.id + 2, first.id + 1])
        await key(daemon, "remove", first.id + 2, "--compromised")
        await until_published(daemon, [first.id + 1])
        found = json.loads(await key(daemon, "list", "--json"))
        assert {each["config_id"]: each["state"] for each in found} == {
            first.id: "expired",
            first.id + 1: "active",
        }
        assert await daemon.stop() == 0
    assert_calm([daemon])


async def test_f1_a_restart_publishes_what_was_published_before(daemon: DaemonProcess) -> None:
    """The states are stored: no start makes a key that nobody asked for."""
    with trio.fail_after(SECONDS):
        await key(daemon, "add", "--active")
        await until_published(daemon, [1])
        assert await daemon.stop() == 0
        assert await daemon.start()
        assert [config.id for config in await published(daemon)] == [1]
        moves = [line["event"] for line in daemon.records() if line["event"].startswith("hpke_key")]
        assert moves == ["hpke_key_made"], "at the first start"
        assert await daemon.stop() == 0
    assert_calm([daemon])
