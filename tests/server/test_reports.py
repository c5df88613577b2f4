"""Uploads as ASGI messages: media type, limits, responses."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import pytest

from dapd.errors import Abort
from dapd.messages.common import MediaType
from dapd.reports import parse_upload_errors
from dapd.server import reports
from tests.leader_harness import LeaderHarness, open_leader
from tests.raw_http import Request, answer
from tests.task_pair import TaskPair, make_reports, task_pair

UPLOAD = {"content-type": "application/ppm-dap;version=9;message=upload-req"}


def silent(_: TaskPair, __: Request) -> bytes:
    return answer(500)


async def post(
    leader: LeaderHarness, *pieces: bytes, headers: dict[str, str]
) -> tuple[dict[bytes, bytes], bytes]:
    """Upload; return the headers and body of the 200 response."""
    events: list[dict[str, Any]] = [
        {"type": "http.request", "body": piece, "more_body": True} for piece in pieces
    ]
    events += [{"type": "http.request", "body": b"", "more_body": False}]
    sent: list[dict[str, Any]] = []

    async def receive() -> dict[str, Any]:
        return events.pop(0)

    async def send(event: dict[str, Any]) -> None:
        sent.append(event)

    await reports.upload(leader.context, leader.task, headers, receive, send)
    assert sent[0]["status"] == 200
    return dict(sent[0]["headers"]), sent[1]["body"]


async def test_b1_all_accepted_is_empty_and_errors_are_listed_in_order(tmp_path: Path) -> None:
    """B1: accepted reports have no entry; entries are in the order of the request."""
    async with open_leader(tmp_path, task_pair(), silent) as leader:
        good = make_reports(leader.pair, [1] * 5)
        headers, body = await post(leader, good[1], good[3], headers=UPLOAD)
        assert body == b""
        assert b"content-type" not in headers
        everything = b"".join(good)
        headers, body = await post(leader, everything[:100], everything[100:], headers=UPLOAD)
        assert headers[b"content-type"] == MediaType.UPLOAD_ERRORS.encode()
        assert parse_upload_errors(body) == [(good[1][:16], 2), (good[3][:16], 2)]


@pytest.mark.parametrize(
    "content_type", [None, "application/ppm-dap", "application/ppm-dap;message=collect-req"]
)
async def test_a10_another_media_type_is_415(tmp_path: Path, content_type: str | None) -> None:
    """A10: type and ``message`` are compared, other parameters are not."""
    async with open_leader(tmp_path, task_pair(), silent) as leader:
        headers = {"content-type": content_type} if content_type else {}
        with pytest.raises(Abort) as refused:
            await post(leader, b"", headers=headers)
        assert refused.value.status == 415


async def test_a_malformed_request_is_invalid_message(tmp_path: Path) -> None:
    """Section "Leader Behavior": a malformed upload request aborts with ``invalidMessage``."""
    async with open_leader(tmp_path, task_pair(), silent) as leader:
        (report,) = make_reports(leader.pair, [1])
        with pytest.raises(Abort) as refused:
            await post(leader, report[:-1], headers=UPLOAD)
        assert refused.value.type == "invalidMessage"
        assert "byte" in refused.value.detail


@pytest.mark.parametrize("announced", [True, False])
async def test_a_body_above_the_limit_is_413(tmp_path: Path, announced: bool) -> None:
    """The server refuses it by its Content-Length, or as soon as too many bytes have arrived."""
    async with open_leader(tmp_path, task_pair(), silent) as leader:
        server = msgspec.structs.replace(leader.context.config.server, max_body_bytes=1024)
        leader.context.config = msgspec.structs.replace(leader.context.config, server=server)
        headers = {**UPLOAD, "content-length": "1025"} if announced else UPLOAD
        with pytest.raises(Abort) as refused:
            await post(leader, bytes(1000), bytes(25), headers=headers)
        assert refused.value.status == 413


async def test_a_client_that_goes_away_before_its_body_ends_gets_nothing(tmp_path: Path) -> None:
    """Half a body is not a request."""
    async with open_leader(tmp_path, task_pair(), silent) as leader:

        async def receive() -> dict[str, Any]:
            return {"type": "http.disconnect"}

        async def send(event: dict[str, Any]) -> None:
            raise AssertionError(event)

        await reports.upload(leader.context, leader.task, UPLOAD, receive, send)
        assert await leader.rows("SELECT * FROM upload_groups") == []
