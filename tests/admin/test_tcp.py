"""The admin listener over TCP: loopback, tokens beyond it, and hostile requests."""

from __future__ import annotations

import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import httpx2
import pytest
import structlog.testing
import trio

from dapd.admin import OPERATIONS
from dapd.app import Daemon
from dapd.crypto import hash_token
from dapd.errors import UsageError
from dapd.http import trusting
from dapd.messages.common import b64url_encode
from dapd.process import reload
from tests.certificates import Authority
from tests.daemon_from_file import running_daemon, write_config

READ, OPERATE, REVOKED = "read-token", "operate-token", "revoked-token"
ACCEPT = "/api/v1/clock/accept"
JSON = {"Content-Type": "application/json"}
EVIL = "dapd.attacker.example"


def bearer(token: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {token}"}


def line(scope: str, token: str) -> str:
    """Return the token as the configuration has it."""
    return f"{scope}:{b64url_encode(hash_token(token))}"


def remote(authority: Authority, *tokens: str) -> str:
    """Return an ``[admin]`` beyond loopback, with the name ``dapd.test``."""
    return (
        '[admin]\nlisten = "0.0.0.0:0"\nhosts = ["dapd.test", "127.0.0.1"]\n'
        f'tls_certificate = "{authority.chain}"\ntls_key = "{authority.key}"\n'
        f"tokens = {list(tokens)}\n"
    )


@asynccontextmanager
async def on_loopback(directory: Path, more: str = "") -> AsyncIterator[httpx2.AsyncClient]:
    """Run a daemon with a listener on loopback, and a client on it."""
    text = f'[admin]\nlisten = "127.0.0.1:0"\n{more}'
    async with (
        running_daemon(write_config(directory, text)) as running,
        httpx2.AsyncClient(base_url=f"http://127.0.0.1:{running.admin_port}") as client,
    ):
        yield client


@asynccontextmanager
async def beyond(directory: Path) -> AsyncIterator[tuple[Daemon, Authority, httpx2.AsyncClient]]:
    """Run a daemon with a listener for all addresses, and a client on it without a token."""
    authority = Authority(directory / "tls").issue()
    tokens = line("read", READ), line("operate", OPERATE)
    async with (
        running_daemon(write_config(directory, remote(authority, *tokens))) as running,
        httpx2.AsyncClient(
            base_url=f"https://127.0.0.1:{running.admin_port}", verify=trusting(authority.file)
        ) as client,
    ):
        yield running, authority, client


async def shout(port: int, raw: bytes, tls: ssl.SSLContext | None = None) -> bytes:
    """Send these bytes, and return the answer until the connection ends."""
    tcp = await trio.open_tcp_stream("127.0.0.1", port)
    stream: trio.SocketStream | trio.SSLStream[trio.SocketStream] = tcp
    if tls is not None:
        stream = trio.SSLStream(tcp, tls, server_hostname="127.0.0.1", https_compatible=True)
    answer = b""
    async with stream:
        with suppress(trio.BrokenResourceError):
            await stream.send_all(raw)
            if isinstance(stream, trio.SocketStream):
                await stream.send_eof()
            async for piece in stream:
                answer += piece
    return answer


def is_problem(answer: httpx2.Response, status: int) -> bool:
    """Check for RFC 9457, and that no other origin may read it."""
    assert not [name for name in answer.headers if name.lower().startswith("access-control-")]
    return (
        answer.status_code == status
        and answer.headers["Content-Type"] == "application/problem+json"
        and answer.json()["status"] == status
        and answer.json()["detail"] != ""
    )


def refusals(running: Daemon) -> dict[str, float]:
    """Return how often each reason was counted."""
    return {
        sample.labels["reason"]: sample.value
        for family in running.context.metrics.admin_refused.collect()
        for sample in family.samples
        if sample.name.endswith("_total") and sample.value
    }


async def test_loopback_has_metrics_and_health_and_no_operation(tmp_path: Path) -> None:
    """Every user of the machine reaches it, so it only shows numbers."""
    async with on_loopback(tmp_path) as client:
        for path, body in (("/healthz", "ok\n"), ("/readyz", "ready\n")):
            answer = await client.get(path)
            assert (answer.status_code, answer.text) == (200, body)
        metrics = await client.get("/metrics")
        assert "dapd_build_info{" in metrics.text
        assert "\ndapd_disk_free_bytes " in metrics.text, "what is read when it is asked for"
        for each in OPERATIONS:
            answer = await client.request(each.method, each.path, content=b"{}", headers=JSON)
            assert is_problem(answer, 404)
        for path in ("/", "/page.css", "/api/v1/openapi.json", "/metrics/"):
            assert is_problem(await client.get(path), 404)
        assert is_problem(await client.post("/metrics", content=b"{}", headers=JSON), 405)


async def test_the_page_is_on_loopback_if_wanted(tmp_path: Path) -> None:
    """With the files that it links, and still without operations."""
    async with on_loopback(tmp_path, "page = true\n") as client:
        assert (await client.get("/")).headers["Content-Type"].startswith("text/html")
        assert (await client.get("/page.css")).status_code == 200
        assert is_problem(await client.get("/api/v1/status"), 404)


@pytest.mark.parametrize(
    ("host", "served"),
    [
        ("localhost", True),
        ("LOCALHOST:9464", True),
        ("127.0.0.1:1", True),
        ("[::1]", True),
        ("[::1]:9464", True),
        ("metrics.test", True),
        ("metrics.test:80", True),
        (EVIL, False),
        (f"{EVIL}:9464", False),
        ("localhost.attacker.example", False),
        ("127.0.0.1.attacker.example", False),
        ("localhost:80:80", False),
        ("[localhost", False),
        ("metrics.test.", False),
        ("0.0.0.0", False),  # noqa: S104
        ("", False),
    ],
)
async def test_a_name_that_is_not_ours_is_refused(tmp_path: Path, host: str, served: bool) -> None:
    """A page whose name now resolves to this machine (DNS rebinding) reads nothing."""
    async with on_loopback(tmp_path, 'hosts = ["metrics.test"]\n') as client:
        for path in ("/metrics", "/healthz", "/nothing"):
            answer = await client.get(path, headers={"Host": host})
            if served:
                assert answer.status_code == (404 if path == "/nothing" else 200)
            else:
                assert is_problem(answer, 421)
                assert host == "" or host not in answer.text


async def test_a_request_without_a_name_is_refused(tmp_path: Path) -> None:
    """HTTP/1.0 may omit Host; two Hosts, or one in the target, don't get around the check."""
    async with on_loopback(tmp_path) as client:
        port = client.base_url.port
        assert port is not None
        for raw, status in (
            (b"GET /metrics HTTP/1.0\r\n\r\n", b" 421 "),
            (b"GET /metrics HTTP/1.1\r\nConnection: close\r\n\r\n", b" 400 "),
            (b"GET /metrics HTTP/1.1\r\nHost: localhost\r\nHost: x\r\n\r\n", b" 400 "),
            (b"GET http://localhost/metrics HTTP/1.1\r\nHost: x\r\n\r\n", b" 421 "),
        ):
            answer = await shout(port, raw)
            assert status in answer.partition(b"\r\n")[0]
            assert b"dapd_build" not in answer


async def test_metrics_come_in_the_form_that_is_asked_for(tmp_path: Path) -> None:
    """OpenMetrics if the scraper wants it, else Prometheus' text; never cached."""
    async with on_loopback(tmp_path) as client:
        wanted = "application/openmetrics-text; version=1.0.0"
        answer = await client.get("/metrics", headers={"Accept": wanted})
        assert answer.headers["Content-Type"].startswith("application/openmetrics-text")
        assert answer.text.endswith("# EOF\n")
        for accept in ("*/*", "text/plain", "rubbish;;q=x", ""):
            answer = await client.get("/metrics", headers={"Accept": accept})
            assert answer.headers["Content-Type"].startswith("text/plain; version=")
            assert not answer.text.endswith("# EOF\n")
        assert answer.headers["Cache-Control"] == "no-store"
        assert (await client.head("/metrics")).content == b""


@pytest.mark.parametrize(
    ("path", "method", "token", "status"),
    [
        ("/healthz", "GET", None, 200),
        ("/readyz", "GET", None, 200),
        ("/metrics", "GET", None, 401),
        ("/", "GET", None, 401),
        ("/api/v1/status", "GET", None, 401),
        (ACCEPT, "POST", None, 401),
        ("/metrics", "GET", READ, 200),
        ("/", "GET", READ, 200),
        ("/api/v1/status", "GET", READ, 200),
        (ACCEPT, "POST", READ, 403),
        ("/metrics", "GET", OPERATE, 200),
        ("/api/v1/status", "GET", OPERATE, 200),
        (ACCEPT, "POST", OPERATE, 200),
        ("/metrics", "GET", REVOKED, 401),
        (ACCEPT, "POST", REVOKED, 401),
        ("/nothing", "GET", READ, 404),
    ],
)
async def test_a_token_does_what_its_scope_says(
    tmp_path: Path, path: str, method: str, token: str | None, status: int
) -> None:
    """Health needs no token, reading needs any, changing needs one with `operate`."""
    async with beyond(tmp_path) as (running, _, client):
        headers = {**JSON, **({} if token is None else bearer(token))}
        content = b"{}" if method == "POST" else None
        answer = await client.request(method, path, content=content, headers=headers)
        assert answer.status_code == status
        if status >= 400:
            assert is_problem(answer, status)
        if status in (401, 403):
            assert answer.headers["WWW-Authenticate"].startswith('Bearer realm="dapd"')
            assert sum(refusals(running).values()) == 1


@pytest.mark.parametrize(
    "value",
    [
        "",
        "Bearer",
        f"Basic {OPERATE}",
        f"bearer{OPERATE}",
        OPERATE,
        f"Bearer {OPERATE} {OPERATE}",
        f"Bearer {OPERATE}x",
        f"Bearer {OPERATE[:-1]}",
        f"Bearer {b64url_encode(hash_token(OPERATE))}",
        f"Bearer {line('operate', OPERATE)}",
        "Bearer " + "A" * 4000,
        b"Bearer \xff\xfe\x80",
    ],
)
async def test_what_is_no_token_of_ours_opens_nothing(tmp_path: Path, value: str | bytes) -> None:
    """Nor does a token's hash, which readers of the configuration know."""
    async with beyond(tmp_path) as (_, _, client):
        with structlog.testing.capture_logs() as logs:
            headers: Any = {**JSON, "Authorization": value}
            answer = await client.post(ACCEPT, content=b"{}", headers=headers)
        assert is_problem(answer, 401)
        assert logs == [], (
            "whoever can connect could fill the log, and a token may be a typing error"
        )


async def test_beyond_loopback_a_name_of_ours_is_needed_too(tmp_path: Path) -> None:
    """Even with a token, even for health: another site could make a browser use its token."""
    async with beyond(tmp_path) as (running, _, client):
        for host in (EVIL, "localhost", "[::1]:9464"):
            for path in ("/healthz", "/metrics", "/api/v1/status"):
                headers = {"Host": host, **bearer(OPERATE)}
                assert is_problem(await client.get(path, headers=headers), 421)
        assert refusals(running) == {"host": 9}
        assert (await client.get("/healthz", headers={"Host": "dapd.test:1"})).status_code == 200


async def test_a_page_of_another_origin_is_told_nothing(tmp_path: Path) -> None:
    """No preflight request is ever allowed."""
    asks = {
        "Origin": "https://attacker.example",
        "Access-Control-Request-Method": "POST",
        "Access-Control-Request-Headers": "authorization,content-type",
    }
    async with beyond(tmp_path) as (_, _, client):
        for headers in (asks, {**asks, **bearer(OPERATE)}):
            for path, allowed in ((ACCEPT, "POST"), ("/api/v1/status", "GET"), ("/metrics", "GET")):
                answer = await client.options(path, headers=headers)
                assert is_problem(answer, 405)
                assert allowed in answer.headers["Allow"]
        served = await client.get("/metrics", headers={**asks, **bearer(READ)})
        assert served.headers["Cross-Origin-Resource-Policy"] == "same-origin"
        assert not [name for name in served.headers if name.lower().startswith("access-control")]
        for kind in ("text/plain", "application/x-www-form-urlencoded", "multipart/form-data"):
            headers = {"Content-Type": kind, **asks, **bearer(OPERATE)}
            assert is_problem(await client.post(ACCEPT, content=b"{}", headers=headers), 415)


async def test_a_change_names_the_token_by_the_beginning_of_its_hash(tmp_path: Path) -> None:
    """So it can be found in the configuration; the token itself is nowhere in the log."""
    async with beyond(tmp_path) as (_, _, client):
        with structlog.testing.capture_logs() as logs:
            headers = {**JSON, **bearer(OPERATE)}
            assert (await client.post(ACCEPT, content=b"{}", headers=headers)).status_code == 200
    [change] = [entry for entry in logs if entry["event"] == "admin_changed"]
    assert change["operation"] == "clock_accept"
    assert line("operate", OPERATE).startswith(f"operate:{change['token']}")
    assert len(change["token"]) == 6
    assert "uid" not in change
    assert OPERATE not in str(logs)


async def test_strangers_get_nothing_and_disturb_nobody(tmp_path: Path) -> None:
    """Clear text on the TLS port, garbage, a websocket, endless headers: others are served."""
    upgrade = (
        b"GET /api/v1/status HTTP/1.1\r\nHost: 127.0.0.1\r\nUpgrade: websocket\r\n"
        b"Connection: Upgrade\r\nSec-WebSocket-Version: 13\r\n"
        b"Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n"
    )
    huge = b"GET /healthz HTTP/1.1\r\nHost: 127.0.0.1\r\nX: " + b"a" * 200_000 + b"\r\n\r\n"
    many = b"GET /healthz HTTP/1.1\r\nHost: 127.0.0.1\r\n" + b"X: y\r\n" * 40_000 + b"\r\n"
    async with beyond(tmp_path) as (running, authority, client):
        port, tls = running.admin_port, trusting(authority.file)
        assert port is not None
        for raw in (b"GET /healthz HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n", b"\x16\x03\x01\xff" * 99):
            assert b"HTTP/" not in await shout(port, raw)
        for raw in (upgrade, huge, many, b"\x00\xff" * 5000):
            answer = await shout(port, raw, tls)
            assert b" 200 " not in answer.partition(b"\r\n")[0]
            assert b"version" not in answer
            assert (await client.get("/healthz")).status_code == 200


async def test_an_address_that_is_taken_stops_the_start(tmp_path: Path) -> None:
    """The error names the table, since there are two listeners."""
    async with on_loopback(tmp_path) as client:
        other = tmp_path / "other"
        other.mkdir()
        text = f'[admin]\nlisten = "127.0.0.1:{client.base_url.port}"\n'
        with pytest.RaisesGroup(
            pytest.RaisesExc(UsageError, match=r"\[admin\] listen = .* another program"),
            flatten_subgroups=True,
        ):
            async with running_daemon(write_config(other, text)):
                pass


async def test_a_reload_takes_a_token_and_the_certificate_away_at_once(tmp_path: Path) -> None:
    """Without a certificate the listener serves nothing, until the restart removes it."""
    async with beyond(tmp_path) as (running, authority, client):
        context, port = running.context, running.admin_port
        assert port is not None
        assert (await client.get("/metrics", headers=bearer(READ))).status_code == 200
        write_config(tmp_path, remote(authority, line("operate", OPERATE)))
        assert (await reload.reload(context)).applied == ("admin.tokens",)
        assert is_problem(await client.get("/metrics", headers=bearer(READ)), 401)
        assert (await client.get("/metrics", headers=bearer(OPERATE))).status_code == 200
        write_config(tmp_path, '[admin]\nlisten = "127.0.0.1:0"\n')
        done = await reload.reload(context)
        assert done.restart == ("admin.listen",)
        asked = (
            f"GET /metrics HTTP/1.0\r\nHost: 127.0.0.1\r\nAuthorization: Bearer {OPERATE}\r\n\r\n"
        )
        answer = await shout(port, asked.encode())
        assert b" 403 " in answer.partition(b"\r\n")[0]
        assert b"nothing without TLS" in answer


async def test_what_moves_away_from_loopback_has_no_tls_before_the_restart(tmp_path: Path) -> None:
    """Else scrapers would get nothing between the reload and the restart."""
    authority = Authority(tmp_path / "tls").issue()
    async with running_daemon(
        write_config(tmp_path, '[admin]\nlisten = "127.0.0.1:0"\n')
    ) as running:
        write_config(tmp_path, remote(authority, line("read", READ)))
        assert "admin.listen" in (await reload.reload(running.context)).restart
        async with httpx2.AsyncClient() as client:
            answer = await client.get(f"http://127.0.0.1:{running.admin_port}/healthz")
    assert answer.status_code == 200


async def test_a_renewed_certificate_is_shown_by_this_listener_too(tmp_path: Path) -> None:
    """As by the public one: it notices that the files have changed."""
    old = Authority(tmp_path / "tls").issue()
    new = Authority(tmp_path / "new").issue()
    async with running_daemon(write_config(tmp_path, remote(old, line("read", READ)))) as running:

        async def believed(authority: Authority) -> bool:
            async with httpx2.AsyncClient(verify=trusting(authority.file)) as client:
                try:
                    await client.get(f"https://127.0.0.1:{running.admin_port}/healthz")
                except httpx2.ConnectError:
                    return False
                return True

        assert (await believed(old), await believed(new)) == (True, False)
        old.chain.write_bytes(new.chain.read_bytes())
        old.key.write_bytes(new.key.read_bytes())
        await reload.renew(running.context)
        assert (await believed(old), await believed(new)) == (False, True)
