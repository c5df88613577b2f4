"""TLS at the public listener and towards the peer: real handshakes on real sockets."""

from __future__ import annotations

import ssl
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import msgspec
import pytest
import structlog.testing
import trio

from dapd.client import Client, UploadFailed
from dapd.collector import Collector
from dapd.config import Config
from dapd.errors import UsageError
from dapd.http import DapHttp, Patience, Ready, Unknown, resource_url, trusting
from dapd.messages.common import MediaType
from dapd.runtime.certificates import read_identity
from dapd.testing.pair import Pair
from tests.certificates import Authority
from tests.pair_harness import open_pair, query_at

TRAFFIC = ssl.SSLError, trio.BrokenResourceError


def endpoints(pair: Pair) -> dict[str, Any]:
    """The pair's endpoints over TLS."""
    return {
        f"{role}_aggregator_endpoint": f"https://127.0.0.1:{side.port}/"
        for role, side in (("leader", pair.leader), ("helper", pair.helper))
    }


async def shake(port: int, context: ssl.SSLContext) -> tuple[str | None, str | None]:
    """Complete a handshake and one request over it. Return the version and protocol that were
    chosen.
    """
    tcp = await trio.open_tcp_stream("127.0.0.1", port)
    async with trio.SSLStream(
        tcp, context, server_hostname="127.0.0.1", https_compatible=True
    ) as stream:
        await stream.do_handshake()
        chosen = stream._ssl_object.version(), stream.selected_alpn_protocol()
        await stream.send_all(b"GET /hpke_config HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        answer = b"".join([piece async for piece in stream])
        assert answer.startswith(b"HTTP/1.1 200")
        return chosen


def config_of(**server: Any) -> Config:
    return msgspec.convert(
        {"datastore": {"sealing_keys": [Path("k")]}, "server": server},
        Config,
        dec_hook=lambda _, value: value,
    )


async def test_a_task_runs_over_tls_from_upload_to_result(tmp_path: Path) -> None:
    """Client, Leader, Helper and Collector each trust a CA of their own."""
    authority = Authority(tmp_path / "tls").issue()
    leader = {"server": authority.server, "leader": {"peer_ca": authority.file}}
    helper = {"server": authority.server, "helper": {"mode": "async"}}
    async with open_pair(tmp_path, leader=leader, helper=helper) as (pair, _):
        task = await pair.new_task("sum:max_measurement=10", **endpoints(pair))
        client = Client(task.files.client, ca=authority.file, clock=pair.seconds)
        collector = Collector(task.files.collector, ca=str(authority.file))
        async with client, collector:
            assert (await client.upload([3, 4, 5])).accepted == 3
            async with collector.collect(query_at()) as result:
                assert result.value == 12


async def test_another_authority_is_not_believed(tmp_path: Path) -> None:
    """A custom CA replaces the system's; nothing is sent to a peer without a certificate of that
    CA.
    """
    authority = Authority(tmp_path / "tls").issue()
    other = Authority(tmp_path / "other")
    async with open_pair(tmp_path, leader={"server": authority.server}) as (pair, _):
        task = await pair.new_task(**endpoints(pair))
        url = resource_url(endpoints(pair)["leader_aggregator_endpoint"], "hpke_config")
        for tls in (None, trusting(other.file)):
            async with DapHttp(tls=tls) as http:
                outcome = await http.get(url, MediaType.HPKE_CONFIG_LIST)
                assert isinstance(outcome, Unknown)
                assert "certificate verify failed" in outcome.reason
                await http.trust(trusting(authority.file))
                outcome = await http.get(url, MediaType.HPKE_CONFIG_LIST)
                assert isinstance(outcome, Ready)
        async with Client(task.files.client, ca=other.file, patience=Patience(1)) as client:
            with pytest.raises(UploadFailed, match="certificate verify failed"):
                await client.upload([1])


async def test_a_certificate_of_another_host_is_not_believed(tmp_path: Path) -> None:
    """RFC 9110, section 4.3.4: it must name the URL's host, even if its authority is trusted."""
    authority = Authority(tmp_path / "tls").issue("another.example")
    async with open_pair(tmp_path, leader={"server": authority.server}) as (pair, _):
        url = resource_url(endpoints(pair)["leader_aggregator_endpoint"], "hpke_config")
        async with DapHttp(tls=trusting(authority.file)) as http:
            outcome = await http.get(url, MediaType.HPKE_CONFIG_LIST)
            assert isinstance(outcome, Unknown)
            assert "IP address mismatch" in outcome.reason


async def test_tls_is_1_2_or_newer_and_speaks_http_1_1(tmp_path: Path) -> None:
    """It is 1.3 if the other end can do it; HTTP/2 is not offered."""
    authority = Authority(tmp_path / "tls").issue()
    async with open_pair(tmp_path, leader={"server": authority.server}) as (pair, _):
        context = trusting(authority.file)
        context.set_alpn_protocols(["h2", "http/1.1"])
        assert await shake(pair.leader.port, context) == ("TLSv1.3", "http/1.1")
        context.maximum_version = ssl.TLSVersion.TLSv1_2
        assert await shake(pair.leader.port, context) == ("TLSv1.2", "http/1.1")
        context = trusting(authority.file)
        context.set_ciphers("ALL:@SECLEVEL=0")
        with pytest.warns(DeprecationWarning, match="TLSv1 is deprecated"):
            context.minimum_version = ssl.TLSVersion.TLSv1
        with pytest.warns(DeprecationWarning, match="TLSv1_1 is deprecated"):
            context.maximum_version = ssl.TLSVersion.TLSv1_1
        with pytest.raises(TRAFFIC):
            await shake(pair.leader.port, context)


async def test_a_bad_handshake_ends_its_own_connection_alone(tmp_path: Path) -> None:
    """Clear text, garbage, silence or a hang-up affect no other connection and log nothing."""
    authority = Authority(tmp_path / "tls").issue()
    server = {**authority.server, "read_timeout": 1.0}
    async with open_pair(tmp_path, leader={"server": server}) as (pair, _):

        async def until_it_is_ended(rubbish: bytes) -> None:
            stream = await trio.open_tcp_stream("127.0.0.1", pair.leader.port)
            async with stream:
                with suppress(trio.BrokenResourceError):
                    await stream.send_all(rubbish)
                    assert b"HTTP/" not in b"".join([piece async for piece in stream])

        with structlog.testing.capture_logs() as logs:
            async with trio.open_nursery() as nursery:
                for rubbish in (
                    b"GET /hpke_config HTTP/1.1\r\nHost: x\r\n\r\n",
                    b"\x16\x03\x01\xff\xff" + b"\xff" * 70_000,
                    b"\x16",
                    b"",
                ):
                    nursery.start_soon(until_it_is_ended, rubbish)
                    assert await shake(pair.leader.port, trusting(authority.file))
            (await trio.open_tcp_stream("127.0.0.1", pair.leader.port)).socket.close()
            assert await shake(pair.leader.port, trusting(authority.file))
        assert [line for line in logs if line["log_level"] in ("warning", "error")] == []


async def test_i8_an_idle_tls_connection_delays_no_stop(tmp_path: Path) -> None:
    """A stop closes it at once, as one without TLS."""
    authority = Authority(tmp_path / "tls").issue()
    async with open_pair(tmp_path, leader={"server": authority.server}) as (pair, _):
        url = resource_url(endpoints(pair)["leader_aggregator_endpoint"], "hpke_config")
        async with DapHttp(tls=trusting(authority.file)) as http:
            assert isinstance(await http.get(url, MediaType.HPKE_CONFIG_LIST), Ready)
            with trio.fail_after(15):
                await pair.leader.stop()


async def test_an_expired_certificate_stops_no_daemon_but_is_an_error(tmp_path: Path) -> None:
    """Jobs don't need it and go on; the log has an error."""
    authority = Authority(tmp_path / "tls").issue(expires=datetime(2020, 1, 1, tzinfo=UTC))
    with structlog.testing.capture_logs() as logs:
        async with open_pair(tmp_path, leader={"server": authority.server}) as (pair, _):
            identity = pair.leader.context.certificates.identity
            assert identity is not None
            assert identity.not_after == 1000 * int(datetime(2020, 1, 1, tzinfo=UTC).timestamp())
    [line] = [line for line in logs if line["event"] == "certificate_invalid"]
    assert "has expired" in line["error"]
    assert line["remedy"]


def test_a_certificate_that_cannot_be_used_is_refused_by_name(tmp_path: Path) -> None:
    """The daemon finds it before any connection does; one line names the file and what is wrong."""
    good, other = Authority(tmp_path / "good").issue(), Authority(tmp_path / "other").issue()
    broken = tmp_path / "broken.pem"
    broken.write_text("no certificate")
    broken.chmod(0o600)
    locked = tmp_path / "locked.pem"
    _lock(good.key, locked)
    for chain, key, what in (
        (good.chain, other.key, "key values mismatch"),
        (broken, good.key, "broken.pem.*not a certificate chain and its private key in PEM"),
        (good.chain, broken, "not a certificate chain and its private key in PEM"),
        (tmp_path / "none.pem", good.key, "none.pem: No such file"),
        (good.chain, tmp_path / "none.pem", "none.pem: No such file"),
        (good.chain, locked, "locked.pem: this private key has a passphrase"),
    ):
        with pytest.raises(UsageError, match=what):
            read_identity(config_of(tls_certificate=chain, tls_key=key).server)
    good.key.chmod(0o644)
    with pytest.raises(UsageError, match="others may read this private key; run `chmod 640"):
        read_identity(config_of(**good.server).server)
    good.key.chmod(0o640)
    identity = read_identity(config_of(**good.server).server)
    assert identity is not None
    assert identity.invalid_at(identity.not_after - 1) is None
    assert "has expired" in (identity.invalid_at(identity.not_after) or "")
    assert "not valid yet" in (identity.invalid_at(identity.not_before - 1) or "")
    assert read_identity(config_of().server) is None


def _lock(key: Path, locked: Path) -> None:
    from cryptography.hazmat.primitives import serialization as form

    private = form.load_pem_private_key(key.read_bytes(), None)
    locked.write_bytes(
        private.private_bytes(
            form.Encoding.PEM, form.PrivateFormat.PKCS8, form.BestAvailableEncryption(b"secret")
        )
    )
    locked.chmod(0o600)


def test_a_file_without_an_authority_is_refused_by_name(tmp_path: Path) -> None:
    """`dapd upload --ca` refuses it too."""
    (tmp_path / "ca.pem").write_text("none")
    with pytest.raises(UsageError, match=r"ca\.pem: no certificate in PEM format"):
        trusting(tmp_path / "ca.pem")
    with pytest.raises(UsageError, match=r"gone\.pem: No such file"):
        trusting(tmp_path / "gone.pem")
