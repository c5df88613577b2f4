"""The admin socket: access, answers, errors, audit events (rule E5)."""

from __future__ import annotations

import json
import os
import socket
import stat
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import httpx2
import pytest
import structlog.testing
import trio

from dapd.admin import OPERATIONS
from dapd.errors import DatastoreError, UsageError
from dapd.server.sockets import unix_listener
from dapd.telemetry import logs
from dapd.testing.pair import Aggregator
from tests.pair_harness import open_pair

ACCEPT = "/api/v1/clock/accept"
JSON = {"Content-Type": "application/json"}


@asynccontextmanager
async def leader_of(directory: Path) -> AsyncIterator[tuple[Aggregator, httpx2.AsyncClient]]:
    """Run a Leader, with a client on its admin socket."""
    async with open_pair(directory) as (pair, _):
        transport = httpx2.AsyncHTTPTransport(uds=str(pair.leader.context.config.admin_socket))
        async with httpx2.AsyncClient(transport=transport, base_url="http://dapd") as client:
            yield pair.leader, client


async def test_e5_the_socket_is_there_while_the_daemon_runs_for_its_user_and_group(
    tmp_path: Path,
) -> None:
    """It is ready once the daemon says that it listens, and gone after a stop."""
    async with leader_of(tmp_path) as (leader, client):
        path = leader.context.config.admin_socket
        assert path == leader.context.config.datastore.path.with_name("dapd.sqlite.admin")
        assert stat.S_IMODE(path.stat().st_mode) == 0o660
        assert (await client.get("/api/v1/clock")).status_code == 200
        await leader.stop()
        assert not path.exists()
        await leader.start()
        assert path.exists()


async def test_i8_a_connection_that_idles_delays_no_stop(tmp_path: Path) -> None:
    """The daemon stops in order, also while a command's connection is open."""
    async with leader_of(tmp_path) as (leader, client):
        assert (await client.get("/api/v1/clock")).status_code == 200
        with trio.fail_after(15):
            await leader.stop()


def test_e5_what_a_killed_daemon_left_is_replaced(tmp_path: Path) -> None:
    """A start needs no cleaning up first."""
    path = tmp_path / "admin.sock"
    left = socket.socket(socket.AF_UNIX)
    left.bind(os.fspath(path))
    left.close()
    with unix_listener(path), socket.socket(socket.AF_UNIX) as probe:
        probe.connect(os.fspath(path))
    assert not path.exists()


def test_a_socket_in_use_a_file_and_a_long_path_are_refused_with_a_remedy(tmp_path: Path) -> None:
    """The daemon doesn't start without its socket, and takes none that another program uses."""
    path = tmp_path / "admin.sock"
    with unix_listener(path):
        with pytest.raises(UsageError, match="listens on this socket"), unix_listener(path):
            pass
        assert path.exists()
    path.write_text("precious")
    with pytest.raises(UsageError, match="is not a socket"), unix_listener(path):
        pass
    assert path.read_text() == "precious"
    with pytest.raises(UsageError, match="set a shorter one"), unix_listener(tmp_path / ("x" * 99)):
        pass
    with pytest.raises(UsageError, match="existing directory"), unix_listener(tmp_path / "no/a"):
        pass


async def test_the_world_does_not_reach_it(tmp_path: Path) -> None:
    """The public listener serves no operation, the admin socket nothing of DAP."""
    async with leader_of(tmp_path) as (leader, client):
        async with httpx2.AsyncClient(base_url=leader.url) as world:
            for each in OPERATIONS:
                for prefix in ("", "dap/", "tasks/"):
                    answer = await world.request(
                        each.method, prefix + each.path, content=b"{}", headers=JSON
                    )
                    assert answer.status_code == 404
        assert (await client.get("/hpke_config")).status_code == 404
        assert leader.context.safe_clock.look().held is None


@pytest.mark.parametrize(
    ("method", "path", "headers", "body", "status"),
    [
        ("GET", "/nothing", {}, b"", 404),
        ("POST", "/healthz", JSON, b"{}", 405),
        ("GET", "/api/v1/clock/", {}, b"", 404),
        ("GET", "/api/v1/clock?fast=1", {}, b"", 400),
        ("GET", "/api/v1/clock", JSON, b"{}", 400),
        ("GET", "/api/v1/jobs?limit=1&limit=1", {}, b"", 400),
        ("GET", "/api/v1/jobs?state=null", {}, b"", 400),
        ("GET", "/api/v1/jobs?limit=0", {}, b"", 400),
        ("HEAD", "/api/v1/clock", {}, b"", 405),
        ("DELETE", "/api/v1/clock", {}, b"", 405),
        ("GET", ACCEPT, {}, b"", 405),
        ("POST", ACCEPT, {}, b"{}", 415),
        ("POST", ACCEPT, {"Content-Type": "text/plain"}, b"{}", 415),
        ("POST", ACCEPT, JSON, b"", 400),
        ("POST", ACCEPT, JSON, b"{", 400),
        ("POST", ACCEPT, JSON, b"\xff\xfe", 400),
        ("POST", ACCEPT, JSON, b"[]", 400),
        ("POST", ACCEPT, JSON, b"null", 400),
        ("POST", ACCEPT, JSON, b'{"force": true}', 400),
        ("POST", ACCEPT, JSON, b"[" * 60_000, 400),
        ("POST", ACCEPT, JSON, b"{}" + b" " * 65_536, 413),
        ("POST", ACCEPT, {**JSON, "Upgrade": "websocket", "Connection": "upgrade"}, b"[]", 400),
    ],
)
async def test_what_is_no_request_is_refused_with_a_problem_document(
    tmp_path: Path, method: str, path: str, headers: dict[str, str], body: bytes, status: int
) -> None:
    """RFC 9457, for each kind of bad request; nothing changes, and no change is logged."""
    async with leader_of(tmp_path) as (_, client):
        with structlog.testing.capture_logs() as logs:
            answer = await client.request(method, path, content=body, headers=headers)
        assert answer.status_code == status
        assert answer.headers["Content-Type"] == "application/problem+json"
        assert "Access-Control-Allow-Origin" not in answer.headers
        if method != "HEAD":
            problem = answer.json()
            assert (problem["type"], problem["status"]) == ("about:blank", status)
            assert problem["detail"]
        assert not [line for line in logs if line["event"].startswith("admin_")]
        assert (await client.get("/api/v1/clock")).status_code == 200


async def test_documents_are_on_the_socket_too(tmp_path: Path) -> None:
    """As `curl --unix-socket` requests them. The socket needs no token."""
    async with leader_of(tmp_path) as (_, client):
        for path, content_type in (
            ("/metrics", "text/plain"),
            ("/healthz", "text/plain"),
            ("/readyz", "text/plain"),
            ("/", "text/html"),
            ("/api/v1/openapi.json", "application/json"),
        ):
            answer = await client.get(path, headers={"Host": "localhost"})
            assert answer.status_code == 200
            assert answer.headers["Content-Type"].startswith(content_type)


@pytest.mark.parametrize("path", ["/", "/metrics", "/api/v1/status"])
async def test_the_socket_refuses_a_foreign_host(tmp_path: Path, path: str) -> None:
    """If SSH forwards a port to it, another site's page could call it by a name that resolves to
    this machine (DNS rebinding).
    """
    async with leader_of(tmp_path) as (_, client):
        answer = await client.get(path, headers={"Host": "rebound.example:8080"})
        assert answer.status_code == 421
        assert "localhost" in answer.json()["detail"]


async def test_garbage_ends_its_own_connection_alone(tmp_path: Path) -> None:
    """Not HTTP, HTTP/2 in clear text, a truncated request, a websocket: others are served."""
    rubbish = [
        b"\x00\xff" * 1000,
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        b"POST /api/v1/clock/accept HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n\r\n{",
        (
            b"GET /api/v1/clock HTTP/1.1\r\nHost: x\r\n"
            b"Upgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 13\r\n"
            b"Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\nrest"
        ),
        b"GET " + b"a" * 100_000,
    ]
    async with leader_of(tmp_path) as (leader, client):
        path = os.fspath(leader.context.config.admin_socket)
        for each in rubbish:
            async with await trio.open_unix_socket(path) as stream:
                with suppress(trio.BrokenResourceError):
                    await stream.send_all(each)
                    await stream.send_eof()
                    async for _ in stream:
                        pass
            assert (await client.get("/api/v1/clock")).status_code == 200


async def test_a_change_is_one_audit_event_with_its_caller(tmp_path: Path) -> None:
    """The log says who changed what; reading leaves no event."""
    async with leader_of(tmp_path) as (_, client):
        with structlog.testing.capture_logs() as logs:
            assert (await client.get("/api/v1/clock")).status_code == 200
            answer = await client.post(ACCEPT, content=b"{}", headers=JSON)
    assert answer.status_code == 200
    assert answer.headers["Cache-Control"] == "no-store"
    changes: list[Any] = [line for line in logs if line["event"] == "admin_changed"]
    assert [(line["operation"], line["request"]) for line in changes] == [("clock_accept", {})]
    assert changes[0]["uid"] == os.getuid()


@pytest.mark.parametrize("fails", [False, True])
async def test_a_change_that_is_refused_or_fails_halfway_is_an_audit_event_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, fails: bool
) -> None:
    """Accepting the clock changes memory first, and the write to the database may fail."""
    async with leader_of(tmp_path) as (leader, client):
        path, request = "/api/v1/job/retry", {"job": "a7"}
        status, error = 409, "UsageError: no job a7; `dapd jobs list --all` shows them"
        if fails:
            path, request, status, error = ACCEPT, {}, 503, "DatastoreError: the disk is gone"

            async def broken(*_: Any) -> None:
                raise DatastoreError("the disk is gone")

            monkeypatch.setattr(leader.context, "run", broken)
        with structlog.testing.capture_logs() as logs:
            answer = await client.post(path, json=request)
        monkeypatch.undo()
    assert answer.status_code == status
    [change] = [entry for entry in logs if entry["event"].startswith("admin_")]
    assert (change["event"], change["request"]) == ("admin_change_failed", request)
    assert (change["error"], change["uid"]) == (error, os.getuid())


async def test_a_change_is_logged_whatever_the_level_is(tmp_path: Path) -> None:
    """Setting it to "error" first hides neither that change nor later ones."""
    before = logs.level()
    try:
        async with leader_of(tmp_path) as (_, client):
            with structlog.testing.capture_logs() as lines:
                for path, body in (("/api/v1/log/level", b'{"level": "error"}'), (ACCEPT, b"{}")):
                    answer = await client.post(path, content=body, headers=JSON)
                    assert answer.status_code == 200
            assert (await client.get("/api/v1/log")).json()["level"] == "error"
    finally:
        logs.set_level(before)
    changes = [line["operation"] for line in lines if line["event"] == "admin_changed"]
    assert changes == ["log_level", "clock_accept"]


@pytest.mark.parametrize(
    ("failure", "status", "detail"),
    [
        (UsageError("not now; wait"), 409, "not now; wait"),
        (DatastoreError("the disk is gone"), 503, "the disk is gone"),
        (RuntimeError("secret"), 500, "the server failed"),
    ],
)
async def test_a_failure_is_a_problem_document_and_the_daemon_goes_on(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    failure: Exception,
    status: int,
    detail: str,
) -> None:
    """Blame decides the status; a bug's message doesn't reach the caller."""
    async with leader_of(tmp_path) as (leader, client):

        def broken() -> None:
            raise failure

        monkeypatch.setattr(leader.context.safe_clock, "accept", broken)
        answer = await client.post(ACCEPT, content=b"{}", headers=JSON)
        assert (answer.status_code, detail in answer.json()["detail"]) == (status, True)
        assert "secret" not in answer.text
        assert json.loads((await client.get("/api/v1/clock")).content)["held"] is None
