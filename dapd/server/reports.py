"""Serve ``POST {leader}/tasks/{task-id}/reports``: uploads from Clients.

Section "Upload Request", "Leader Behavior". A plain ASGI function, as it is the busiest route. Left
out: what happens to the reports (``dapd.driver.uploads``), and the routing (``dapd.server.front``),
which also turns an ``Abort`` into a problem document.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from dapd.errors import Abort
from dapd.http.fields import message_of
from dapd.messages.common import MediaType
from dapd.protocol.task import Task
from dapd.runtime.context import Context
from dapd.runtime.replay_room import require_replay_room
from dapd.wording import count

Receive = Callable[[], Awaitable[dict[str, Any]]]
Send = Callable[[dict[str, Any]], Awaitable[None]]


async def upload(
    context: Context, task: Task, headers: Mapping[str, str], receive: Receive, send: Send
) -> None:
    """Answer one ``UploadRequest`` once its reports are stored (I2). Raises ``Abort``."""
    if message_of(headers.get("content-type")) is not MediaType.UPLOAD_REQ:  # A10
        raise Abort(None, f"Content-Type must be {MediaType.UPLOAD_REQ}", status=415)
    require_replay_room(context, task)  # E4
    body = await read_body(headers, receive, context.config.server.max_body_bytes)
    if body is None:
        return
    answer = await context.uploads.submit(task, body)
    if answer.error is not None:
        offset, reason = answer.error
        raise Abort("invalidMessage", f"{reason} at byte {offset}")
    await _respond(send, answer.upload_errors)


async def read_body(headers: Mapping[str, str], receive: Receive, limit: int) -> bytes | None:
    """Return the body; ``None`` if the connection has ended. Raises ``Abort`` with 413."""
    announced = headers.get("content-length", "")
    if announced.isdecimal() and int(announced) > limit:
        raise _too_large(limit)
    pieces: list[bytes] = []
    size = 0
    while True:
        event = await receive()
        if event["type"] != "http.request":
            return None
        piece = event.get("body", b"")
        size += len(piece)
        if size > limit:
            raise _too_large(limit)
        pieces.append(piece)
        if not event.get("more_body", False):
            return b"".join(pieces)


def _too_large(limit: int) -> Abort:
    return Abort(None, f"a request body may have at most {count(limit, 'byte')}", status=413)


async def _respond(send: Send, upload_errors: bytes) -> None:
    """Send the ``UploadErrors``, or an empty response if every report was accepted."""
    headers = [(b"content-length", str(len(upload_errors)).encode())]
    if upload_errors:
        headers.append((b"content-type", MediaType.UPLOAD_ERRORS.encode()))
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": upload_errors})
