"""The configuration read again in a running daemon: what follows it, and what it refuses."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path

import msgspec
import pytest
import structlog.testing
import trio
from trio.testing import MockClock

from dapd.admin.gauges import Gauges
from dapd.app import Daemon
from dapd.config import Config, Server
from dapd.config.loading import load
from dapd.errors import UsageError
from dapd.http import DapHttp, Ready, trusting
from dapd.messages.common import MediaType
from dapd.process import reload
from dapd.runtime.certificates import read_certificates
from tests.certificates import Authority
from tests.contexts import make_config, open_context
from tests.daemon_from_file import running_daemon, write_config

HOUR = 3600


def server(authority: Authority, more: str = "") -> str:
    return (
        f'[server]\nlisten = "127.0.0.1:0"\ntls_certificate = "{authority.chain}"\n'
        f'tls_key = "{authority.key}"\n{more}'
    )


PLAIN = '[server]\nlisten = "127.0.0.1:0"\n'


async def fetches(port: int, authority: Authority) -> bool:
    """Whether a new connection shows a certificate of this authority."""
    async with DapHttp(timeout=20, tls=trusting(authority.file)) as http:
        url = f"https://127.0.0.1:{port}/hpke_config"
        return isinstance(await http.get(url, MediaType.HPKE_CONFIG_LIST), Ready)


def test_each_key_is_either_live_or_needs_a_restart(tmp_path: Path) -> None:
    """One table, which no key of the configuration is missing from."""
    keys = set(reload.keys_of(load(write_config(tmp_path, PLAIN))))
    assert keys == reload.LIVE | reload.RESTART
    assert not reload.LIVE & reload.RESTART


async def test_live_keys_are_in_force_at_once_and_the_others_stay_as_they_are(
    tmp_path: Path,
) -> None:
    """Also what was handed out at the start; `context.config` says what is in force."""
    async with running_daemon(write_config(tmp_path, PLAIN)) as running:
        context = running.context
        peer = context.peers.at("https://helper.example/")
        write_config(
            tmp_path,
            '[server]\nlisten = "127.0.0.1:1"\nmax_body_bytes = 1024\nread_timeout = 5\n'
            "[helper]\nmax_running = 3\npoll_hold = 1\n"
            "[leader]\npermits_per_peer = 2\nrequest_timeout = 7\nslots = 9\n"
            "[disk]\nmin_free_bytes = 12345\n",
        )
        with structlog.testing.capture_logs() as logs:
            done = await reload.reload(context)
        assert done.applied == (
            "disk.min_free_bytes",
            "helper.max_running",
            "helper.poll_hold",
            "leader.permits_per_peer",
            "leader.request_timeout",
            "server.read_timeout",
        )
        assert done.restart == ("leader.slots", "server.listen", "server.max_body_bytes")
        config = context.config
        assert (config.server.read_timeout, config.helper.poll_hold) == (5, 1)
        assert (config.server.listen, config.leader.slots) == ("127.0.0.1:0", 0)
        assert (context.work.limit, context.disk.min_free_bytes) == (3, 12345)
        assert (peer.free, context.peers.at("https://new.example/").free) == (2, 2)
        assert context.http.timeout == 7
        [line] = logs
        assert line["event"] == "configuration_reloaded"
        again = await reload.reload(context)
        assert (again.applied, again.restart) == ((), done.restart), "they still wait"
        assert context.restart_for == done.restart


@pytest.mark.parametrize(
    "text",
    [
        "[server]\nread_timeout = 5\n[disk]\nmin_free_bytes = -1\n",
        "[server]\nread_timeout = 5\nextra = 1\n",
        '[server]\nread_timeout = 5\n[leader]\npeer_ca = "none.pem"\n',
        '[server]\nread_timeout = 5\ntls_certificate = "none.pem"\ntls_key = "none.pem"\n',
        "[server\n",
    ],
)
async def test_a_refused_file_changes_nothing(tmp_path: Path, text: str) -> None:
    """All or nothing, whichever part is wrong; the reason is logged."""
    async with running_daemon(write_config(tmp_path, PLAIN)) as running:
        context = running.context
        before = context.config, context.certificates
        write_config(tmp_path, text)
        with structlog.testing.capture_logs() as logs, pytest.raises(UsageError):
            await reload.reload(context)
        assert (context.config, context.certificates) == before
        [line] = logs
        assert (line["event"], line["log_level"]) == ("reload_refused", "error")
        assert line["remedy"]


async def test_an_expired_or_mismatched_certificate_is_refused_and_the_old_one_stays(
    tmp_path: Path,
) -> None:
    """It is tried before any connection meets it, together with all else in the file."""
    authority = Authority(tmp_path / "tls").issue()
    async with running_daemon(write_config(tmp_path, server(authority))) as running:
        write_config(tmp_path, server(authority, "read_timeout = 5\n"))
        authority.issue(expires=datetime(2020, 1, 1, tzinfo=UTC))
        with pytest.raises(UsageError, match="has expired"):
            await reload.reload(running.context)
        authority.key.write_bytes(Authority(tmp_path / "other").issue().key.read_bytes())
        with pytest.raises(UsageError, match="key values mismatch"):
            await reload.reload(running.context)
        assert running.context.config.server.read_timeout == 30
        assert await fetches(running.port, authority)


async def test_tls_begins_and_ends_with_a_reload_and_authorities_change(tmp_path: Path) -> None:
    """New connections only; the certificate's date is a metric."""
    authority, peers = Authority(tmp_path / "tls").issue(), Authority(tmp_path / "peers").issue()
    async with (
        running_daemon(write_config(tmp_path, PLAIN)) as running,
        daemon_of(tmp_path, peers) as peer,
    ):
        context = running.context
        gauges = Gauges(context)
        url = f"https://127.0.0.1:{peer.port}/hpke_config"
        assert not await fetches(running.port, authority)
        assert not isinstance(await context.http.get(url, MediaType.HPKE_CONFIG_LIST), Ready)
        write_config(tmp_path, f'{server(authority)}[leader]\npeer_ca = "{peers.file}"\n')
        done = await reload.reload(context)
        assert done.applied == ("leader.peer_ca", "server.tls_certificate", "server.tls_key")
        assert await fetches(running.port, authority)
        assert isinstance(await context.http.get(url, MediaType.HPKE_CONFIG_LIST), Ready)
        await gauges.refresh()
        identity = context.certificates.identity
        assert identity is not None
        assert [
            sample.value
            for family in gauges.collect()
            for sample in family.samples
            if sample.name == "dapd_certificate_expiry_timestamp_seconds"
        ] == [identity.not_after / 1000]
        write_config(tmp_path, PLAIN)
        await reload.reload(context)
        assert not await fetches(running.port, authority)


@asynccontextmanager
async def daemon_of(directory: Path, authority: Authority) -> AsyncIterator[Daemon]:
    """Another daemon, which shows a certificate of ``authority``."""
    (directory / "peer").mkdir()
    async with running_daemon(write_config(directory / "peer", server(authority))) as running:
        yield running


async def test_a_renewed_certificate_is_used_after_the_next_look(tmp_path: Path) -> None:
    """Without a word from anybody; one that is no good is an error, and the old one goes on."""
    old = Authority(tmp_path / "tls").issue()
    new = Authority(tmp_path / "new").issue()
    async with running_daemon(write_config(tmp_path, server(old))) as running:
        context = running.context

        async def look() -> list[str]:
            with structlog.testing.capture_logs() as logs:
                await reload.renew(context)
            return [line["event"] for line in logs if line["event"].startswith("certificate_")]

        assert await look() == []
        old.chain.write_bytes(new.chain.read_bytes())  # half of a renewal
        assert await look() == ["certificate_refused"]
        assert await look() == ["certificate_refused"], "until somebody mends it"
        assert await fetches(running.port, old)
        old.key.write_bytes(new.key.read_bytes())
        assert await look() == ["certificate_renewed"]
        assert await fetches(running.port, new)
        assert await look() == []
        assert isinstance(context.config, Config)


async def test_certificates_are_looked_at_every_hour_until_draining(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    """Not before the hour is over. One that is no good leaves the old one, and the next look tries
    again. Told is a change, and each refusal.
    """
    files = Authority(tmp_path / "tls").issue(expires=datetime(2030, 1, 1, tzinfo=UTC))
    settings = msgspec.structs.replace(make_config(tmp_path), server=Server(**files.server))
    ended = trio.Event()
    async with open_context(settings) as context, trio.open_nursery() as nursery:
        context.certificates = read_certificates(settings)

        async def look() -> None:
            await reload.run(context)
            ended.set()

        async def shown_after(seconds: float) -> tuple[int, list[str]]:
            """The year in which the certificate expires, and what was told meanwhile."""
            with structlog.testing.capture_logs() as logs:
                await trio.sleep(seconds)
            identity = context.certificates.identity
            assert identity is not None
            year = datetime.fromtimestamp(identity.not_after / 1000, UTC).year
            return year, [line["event"] for line in logs]

        nursery.start_soon(look)
        files.issue(expires=datetime(2031, 1, 1, tzinfo=UTC))
        assert await shown_after(HOUR - 1) == (2030, [])
        assert await shown_after(HOUR) == (2031, ["certificate_renewed"])
        files.issue(expires=datetime(2025, 1, 1, tzinfo=UTC))
        assert await shown_after(2 * HOUR) == (2031, ["certificate_refused"] * 2)
        files.issue(expires=datetime(2032, 1, 1, tzinfo=UTC))
        assert await shown_after(2 * HOUR) == (2032, ["certificate_renewed"])
        context.draining.set()
        with trio.fail_after(1):
            await ended.wait()
