"""``dapd reload`` and SIGHUP as an operator uses them: real processes, real signals."""

from __future__ import annotations

import json
import os
import signal
from functools import partial
from pathlib import Path

import trio

from dapd.http import DapHttp, Ready, trusting
from dapd.messages.common import MediaType
from tests.awaitable_counter import AwaitableCounter
from tests.certificates import Authority
from tests.processes.daemons import QUICK, SECONDS, DaemonProcess, Wire, run_command


def change(daemon: DaemonProcess, old: str, new: str) -> None:
    text = daemon.config.read_text()
    assert old in text
    daemon.config.write_text(text.replace(old, new))


async def test_reload_says_what_it_applied_and_what_waits_and_exits_1_if_refused(
    tmp_path: Path, nursery: trio.Nursery
) -> None:
    """A refusal gives the reason and changes nothing, whoever finds it: command or daemon."""
    daemon = DaemonProcess(tmp_path, nursery, Wire())
    daemon.make()
    with trio.fail_after(SECONDS):
        status, _, stderr = await run_command("--config", daemon.config, "reload")
        assert (status, "no daemon runs" in stderr) == (1, True)
        assert await daemon.start()
        change(daemon, "retry_max = 0.2", "retry_max = 0.3\nslots = 3")
        status, stdout, stderr = await run_command("--config", daemon.config, "reload", "--json")
        assert status == 0, stderr
        assert json.loads(stdout) == {"applied": ["leader.retry_max"], "restart": ["leader.slots"]}
        _, stdout, _ = await run_command("--config", daemon.config, "status")
        assert "still runs with the old leader.slots: restart dapd" in stdout
        change(daemon, "retry_max = 0.3", "retry_max = -1")
        status, _, stderr = await run_command("--config", daemon.config, "reload")
        assert (status, "leader.retry_max" in stderr) == (1, True)
        change(daemon, "retry_max = -1", 'retry_max = 0.4\npeer_ca = "none.pem"')
        status, _, stderr = await run_command("--config", daemon.config, "reload")
        assert (status, "none.pem: No such file" in stderr) == (1, True)
        change(daemon, '\npeer_ca = "none.pem"', "")
        assert daemon.process is not None
        os.kill(daemon.process.pid, signal.SIGHUP)
        await daemon.logged("configuration_reloaded", 2)
        assert daemon.records()[-1]["applied"] == ["leader.retry_max"], "not by the refused one"
        daemon.config.write_text("[server\n")
        os.kill(daemon.process.pid, signal.SIGHUP)
        await daemon.logged("reload_refused", 2)
        assert await daemon.stop() == 0


async def test_a_certificate_is_replaced_under_load_without_a_failed_request(
    tmp_path: Path, nursery: trio.Nursery
) -> None:
    """Connections under way go on, and new ones show the new certificate."""
    authority = Authority(tmp_path / "tls").issue()
    daemon = DaemonProcess(tmp_path / "daemon", nursery, Wire())
    names = "\n".join(f'{key} = "{path}"' for key, path in authority.server.items())
    daemon.make(QUICK, names)
    done = trio.Event()
    answered = AwaitableCounter()

    async def requests(*, kept: bool) -> None:
        url = f"https://127.0.0.1:{daemon.wire.target}/hpke_config"
        while not done.is_set():
            async with DapHttp(timeout=SECONDS, tls=trusting(authority.file)) as http:
                for _ in range(20 if kept else 1):
                    outcome = await http.get(url, MediaType.HPKE_CONFIG_LIST)
                    assert isinstance(outcome, Ready), outcome
                    answered.add(1)

    with trio.fail_after(SECONDS):
        assert await daemon.start()
        assert daemon.process is not None
        async with trio.open_nursery() as load:
            for kept in (True, True, False, False):
                load.start_soon(partial(requests, kept=kept))
            for renewals in range(1, 6):
                await answered.more(20)
                authority.issue()
                os.kill(daemon.process.pid, signal.SIGHUP)
                await daemon.logged("configuration_reloaded", renewals)
            await answered.more(20)
            done.set()
        assert await daemon.stop() == 0
    [line, *_] = [each for each in daemon.records() if each["event"] == "configuration_reloaded"]
    assert line["applied"] == ["server.tls_certificate", "server.tls_key"]
