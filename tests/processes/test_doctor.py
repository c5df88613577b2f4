"""``dapd doctor`` beside real daemons, healthy and not."""

from __future__ import annotations

import json
import signal
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import trio

from dapd.crypto import hash_token
from dapd.http import DapHttp
from dapd.messages.common import b64url_encode
from dapd.reports import ReportError
from dapd.taskfile import TaskFile, read_task_file
from tests.certificates import Authority
from tests.pair_harness import until
from tests.processes.daemons import QUICK, SECONDS, DaemonProcess, Wire, run_command, start_pair
from tests.processes.test_admin_commands import open_house
from tests.processes.test_task_life import dapd_task, new_task, seal, shown, upload

Findings = list[dict[str, Any]]


async def doctor(daemon: DaemonProcess, *arguments: object) -> Findings:
    """Return the findings, if the exit status fits them."""
    status, stdout, stderr = await run_command(
        "--config", daemon.config, "doctor", "--json", *arguments
    )
    assert stderr == ""
    found: Findings = json.loads(stdout)["findings"]
    assert status == any(each["level"] == "failure" for each in found)
    return found


def of(found: Findings, name: str) -> list[tuple[str, str]]:
    """Return level and subject of each finding of a check."""
    return [(each["level"], each["subject"]) for each in found if each["check"] == name]


def failures(found: Findings) -> list[tuple[str, str, str, str]]:
    return [
        (each["check"], each["subject"], each["detail"], each["remedy"])
        for each in found
        if each["level"] == "failure"
    ]


def the_failure(found: Findings) -> tuple[str, str, str, str]:
    failed = failures(found)
    assert len(failed) == 1, failed
    return failed[0]


async def test_a_pair_that_works_has_nothing_wrong(tmp_path: Path) -> None:
    """Each Aggregator checks its peer and its own URL, once for two tasks. A backup removes the
    last warning.
    """
    async with open_house(tmp_path) as house:
        (tmp_path / "copies").mkdir()
        await new_task(tmp_path / "another", leader=house.leader.wire.url,
                       helper=house.helper.wire.url)  # fmt: skip
        for role in ("leader", "helper"):
            await dapd_task(getattr(house, role), "add", tmp_path / f"another/{role}.toml")
        for daemon, peer in ((house.leader, house.helper), (house.helper, house.leader)):
            (daemon.directory / "state").chmod(0o700)
            found = await doctor(daemon)
            assert failures(found) == []
            assert of(found, "own_url") == [("ok", daemon.wire.url)]
            assert of(found, "peer") == [("ok", peer.wire.url)]
            assert {level for level, _ in of(found, "clock")} == {"ok"}
            assert of(found, "task") == [("ok", "")]
            assert [level for level, _ in of(found, "daemon")] == ["ok"]
            assert {each["check"] for each in found if each["level"] == "warning"} == {"backup"}
            copied = await run_command("--config", daemon.config, "backup", tmp_path / "copies")
            assert copied[0] == 0
            assert not [each for each in await doctor(daemon) if each["level"] == "warning"]


async def test_what_only_the_daemon_knows_is_found_too(tmp_path: Path) -> None:
    """Here a paused peer."""
    async with open_house(tmp_path) as house:
        url = house.helper.wire.url
        await house.dapd("peer", "pause", url)
        found = await doctor(house.leader, "--offline")
        (paused,) = [
            each for each in found if each["check"] == "daemon" and each["level"] == "warning"
        ]
        assert (paused["subject"], paused["detail"]) == (url, "is paused by an operator")
        assert paused["remedy"] == f"`dapd peer resume {url}`"
        assert of(found, "peer") == of(found, "own_url") == []


async def test_another_daemon_behind_the_own_url(tmp_path: Path) -> None:
    """It answers correctly; only its keys tell that it is another daemon."""
    async with open_house(tmp_path) as house:
        mine, house.leader.wire.target = house.leader.wire.target, house.helper.wire.target
        name, subject, detail, remedy = the_failure(await doctor(house.leader))
        assert (name, subject) == ("own_url", house.leader.wire.url)
        assert "HPKE keys that this database does not have" in detail
        assert "check where the proxy forwards to" in remedy
        house.leader.wire.target = mine
        assert failures(await doctor(house.leader)) == []


async def test_a_daemon_that_is_stopped_and_a_peer_that_is_away(tmp_path: Path) -> None:
    """One failure each; a stopped daemon's has the command that starts it."""
    async with open_house(tmp_path) as house:
        await house.helper.stop()
        name, subject, _, remedy = the_failure(await doctor(house.leader))
        assert (name, subject) == ("peer", house.helper.wire.url)
        assert "ask the peer's operator" in remedy
        found = failures(await doctor(house.helper, "--offline"))
        assert [(name, remedy) for name, _, _, remedy in found] == [
            ("daemon", f"start it: `dapd --config {house.helper.config}`")
        ]
        assert await house.helper.start()
        assert failures(await doctor(house.helper)) == []


async def test_a_daemon_that_hangs(tmp_path: Path, nursery: trio.Nursery) -> None:
    """Its socket accepts connections, but nothing answers."""
    with trio.fail_after(SECONDS):
        daemon = DaemonProcess(tmp_path / "dapd", nursery, Wire())
        daemon.make()
        assert await daemon.start()
        assert daemon.process is not None
        daemon.process.send_signal(signal.SIGSTOP)
        name, subject, detail, remedy = the_failure(await doctor(daemon, "--timeout", 0.2))
        assert (name, subject) == ("daemon", f"{daemon.database}.admin")
        assert detail == "the daemon doesn't answer within 0.2 s"
        assert "restart it" in remedy
        daemon.process.send_signal(signal.SIGCONT)
        assert failures(await doctor(daemon)) == []
        assert await daemon.stop() == 0


async def test_reports_that_expire_before_anybody_collects_them(tmp_path: Path) -> None:
    """Within a day of expiry it is a failure: they must be collected."""
    async with open_house(tmp_path) as house:
        task_id = b64url_encode(house.task.task_id)
        reports = await seal(house.http, house.task, "not collected")
        assert await upload(house.http, house.task, reports) == {0}
        assert failures(await doctor(house.leader)) == []
        await dapd_task(house.leader, "set", task_id, "--report-expiry-age", 3600)
        name, subject, detail, remedy = the_failure(await doctor(house.leader))
        assert (name, subject) == ("task", task_id)
        assert detail.startswith("has uncollected reports that expire from ")
        assert "have them collected" in remedy
        assert failures(await doctor(house.helper)) == [], "a Helper collects nothing"


async def test_a_pair_over_tls_with_an_authority_of_its_own(
    tmp_path: Path, nursery: trio.Nursery, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Peers are checked with [leader] peer_ca, the own URL with what Clients trust. A renewed
    certificate that the daemon doesn't use yet is a warning; an admin certificate that expires
    before the public one is not.
    """
    authority = Authority(tmp_path / "tls").issue()
    lines = "\n".join(f'{name} = "{path}"' for name, path in authority.server.items())
    settings = QUICK.replace("[leader]", f'[leader]\npeer_ca = "{authority.file}"')
    admin = Authority(tmp_path / "admin").issue(expires=datetime.now(UTC) + timedelta(days=60))
    settings += f'''
[admin]
listen = "0.0.0.0:0"
hosts = ["127.0.0.1"]
tls_certificate = "{admin.chain}"
tls_key = "{admin.key}"
tokens = ["read:{b64url_encode(hash_token("t"))}"]
'''
    with trio.fail_after(SECONDS):
        daemons = await start_pair(tmp_path, nursery, settings, lines)
        urls = {role: each.wire.url.replace("http:", "https:") for role, each in daemons.items()}
        await new_task(tmp_path / "task", **urls)
        for role, daemon in daemons.items():
            await dapd_task(daemon, "add", tmp_path / f"task/{role}.toml")
        leader = daemons["leader"]
        found = await doctor(leader)
        assert of(found, "peer") == [("ok", urls["helper"])]
        name, subject, detail, _ = the_failure(found)
        assert (name, subject) == ("own_url", urls["leader"])
        assert "no trusted authority" in detail
        monkeypatch.setenv("SSL_CERT_FILE", str(authority.file))
        for daemon in daemons.values():
            found = await doctor(daemon)
            assert failures(found) == []
            assert {level for level, _ in of(found, "certificate")} == {"ok"}
        authority.issue(expires=datetime.now(UTC) + timedelta(days=50))
        (renewed,) = [
            each for each in await doctor(leader, "--offline")
            if each["check"] == "certificate" and each["level"] == "warning"
        ]  # fmt: skip
        assert renewed["remedy"] == "`dapd reload`"
        assert (await run_command("--config", leader.config, "reload"))[0] == 0
        found = await doctor(leader, "--offline")
        assert {level for level, _ in of(found, "certificate")} == {"ok"}


async def test_a_peer_that_never_answers_ends_at_the_timeout(
    tmp_path: Path, nursery: trio.Nursery
) -> None:
    """Whichever step takes so long."""

    async def silent(_: trio.SocketStream) -> None:
        await trio.sleep_forever()

    with trio.fail_after(SECONDS):
        listeners = await nursery.start(trio.serve_tcp, silent, 0)
        url = f"http://127.0.0.1:{listeners[0].socket.getsockname()[1]}/"
        leader = DaemonProcess(tmp_path / "leader", nursery, Wire())
        leader.make()
        await new_task(tmp_path / "task", leader="http://127.0.0.1:9/", helper=url)
        await dapd_task(leader, "add", tmp_path / "task/leader.toml")
        (peer,) = [each for each in failures(await doctor(leader, "--timeout", 0.2))
                   if each[0] == "peer"]  # fmt: skip
        assert peer[2].endswith(" within 0.2 s")


@pytest.mark.parametrize("odd", ["helper", "client"])
async def test_parties_with_different_task_configurations(
    tmp_path: Path, nursery: trio.Nursery, odd: str
) -> None:
    """No report opens, and the finding says what to compare. Both Aggregators see it if the
    Helper's configuration differs, the Leader if the Clients' does.
    """
    with trio.fail_after(SECONDS):
        daemons = await start_pair(tmp_path, nursery)
        files = tmp_path / "task"
        await new_task(files, **{role: each.wire.url for role, each in daemons.items()})
        file = files / f"{odd}.toml"
        file.write_text(file.read_text().replace("min_batch_size = 3", "min_batch_size = 4"))
        for role, daemon in daemons.items():
            await dapd_task(daemon, "add", files / f"{role}.toml")
        task = read_task_file(files / "client.toml")
        name, failing = b64url_encode(task.task_id), {"client": ["leader"]}.get(odd, list(daemons))
        counter = f"{'upload' if odd == 'client' else 'aggregate'}_hpke_decrypt_error"
        async with DapHttp() as http:
            answer = ReportError.HPKE_DECRYPT_ERROR if odd == "client" else 0
            assert await upload(http, task, await seal(http, task, "all fail")) == {answer}
        for role in failing:
            await until_counted(daemons[role], task, counter)
            what, subject, detail, remedy = the_failure(await doctor(daemons[role]))
            assert (what, subject) == ("task", name)
            assert "hpke_decrypt_error: 3" in detail
            assert "sealed for another TaskConfiguration" in detail
            known = await shown(daemons[role], task)
            assert f"`dapd task show {name}`" in remedy
            assert known["configuration_sha256"] in remedy
        for role in set(daemons) - set(failing):
            assert failures(await doctor(daemons[role])) == []


async def until_counted(daemon: DaemonProcess, task: TaskFile, name: str) -> None:
    async def counted() -> bool:
        return bool((await shown(daemon, task))["counters"].get(name) == 3)

    await until(counted)
