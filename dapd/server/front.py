"""Route and authenticate each request before its handler: find the task, check role and token.

A plain ASGI function, so that uploads, the busiest route, pass through nothing else. Routes match
the end of the path under any prefix, so that dapd works behind a proxy whether or not that strips
the prefix. Authentication comes before the body is read (rule A9).
"""

from __future__ import annotations

import re
import time
from collections.abc import Awaitable, Callable, Iterable
from typing import Any

import structlog
import trio

from dapd.crypto import token_matches
from dapd.errors import Abort
from dapd.messages.common import b64url_decode
from dapd.protocol.task import Task
from dapd.runtime.context import Context
from dapd.server import reports
from dapd.server.problems import failure_document, problem_document
from dapd.telemetry.log_context import begin_request
from dapd.telemetry.metrics import Metrics

Scope = dict[str, Any]
Receive = Callable[[], Awaitable[dict[str, Any]]]
Send = Callable[[dict[str, Any]], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

_ROUTE = re.compile(
    r"(?:/hpke_config|/tasks/(?P<task>[^/]*)"
    r"/(?P<resource>reports|aggregation_jobs|aggregate_shares|collection_jobs)(?:/[^/]*)?)\Z"
)
_SERVED_BY_LEADER = frozenset({"reports", "collection_jobs"})


def front(context: Context, inner: App) -> App:
    """Return the daemon's ASGI application; ``inner`` serves all but uploads."""

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "websocket":
            await send({"type": "websocket.close"})
            return
        begin_request()
        task_text = None
        match = _ROUTE.search(scope["path"])
        route = "unknown" if match is None else match["resource"] or "hpke_config"
        send = _measured(context.metrics, route, send)
        try:
            if match:
                scope = {**scope, "path": match[0], "raw_path": match[0].encode(), "root_path": ""}
                if resource := match["resource"]:
                    task_text = match["task"]
                    task = await _find_task(context, task_text, resource)
                    structlog.contextvars.bind_contextvars(task_id=task.id_text)
                    headers = headers_of(scope["headers"])
                    if not _is_authentic(task, resource, headers):
                        await context.tasks.refresh()  # E5: a token may have been added just now
                        task = await _find_task(context, task_text, resource)
                        _authenticate(task, resource, headers)
                    if resource == "reports" and match[0].endswith("/reports"):
                        _require_post(scope["method"])
                        await reports.upload(context, task, headers, receive, send)
                        return
                    scope["dapd.task"] = task
            await inner(scope, *_hide_early_disconnect(receive, send))
        except Abort as abort:
            await respond(send, *problem_document(abort, task_text))
        except Exception as error:  # noqa: BLE001 - logged here, and the daemon goes on
            await respond(send, *failure_document(error, route, task_text))

    return app


def _measured(metrics: Metrics, route: str, send: Send) -> Send:
    """Wrap ``send`` to count the response by route and status, and measure the time until it."""
    begun = time.perf_counter()

    async def measured(message: dict[str, Any]) -> None:
        if message["type"] == "http.response.start":
            metrics.http_requests.labels(route, message["status"]).inc()
            metrics.http_seconds.labels(route).observe(time.perf_counter() - begun)
        await send(message)

    return measured


async def respond(
    send: Send, status: int, headers: Iterable[tuple[str, str]], body: bytes = b""
) -> None:
    """Send one whole response."""
    raw = [(name.lower().encode(), value.encode("latin-1")) for name, value in headers]
    raw.append((b"content-length", str(len(body)).encode()))
    await send({"type": "http.response.start", "status": status, "headers": raw})
    await send({"type": "http.response.body", "body": body})


def _hide_early_disconnect(receive: Receive, send: Send) -> tuple[Receive, Send]:
    """Wrap both for quart-trio, so that it sees no "disconnect" once the last ``send`` has begun.

    hypercorn reports a complete response as a "disconnect" from within the last ``send``. On that
    quart-trio cancels the handler, and so hypercorn before it marks the connection as idle: neither
    the keep-alive limit would close it, nor a stop before the grace period is over.
    """
    ending = False

    async def receive_until_ending() -> dict[str, Any]:
        event = await receive()
        if ending:
            await trio.sleep_forever()  # until the handler, which has returned, ends its nursery
        return event

    async def note_ending(message: dict[str, Any]) -> None:
        nonlocal ending
        ending = message["type"] == "http.response.body" and not message.get("more_body", False)
        await send(message)

    return receive_until_ending, note_ending


async def _find_task(context: Context, text: str, resource: str) -> Task:
    """Return the task that serves this resource. Raises ``Abort``."""
    try:
        task = await context.tasks.find(b64url_decode(text))
    except ValueError:
        task = None
    if task is None:
        raise Abort("unrecognizedTask", "this Aggregator has no task with this ID", status=404)
    if task.is_leader is not (resource in _SERVED_BY_LEADER):
        role = "Leader" if task.is_leader else "Helper"
        raise Abort(
            "unrecognizedTask",
            f"this Aggregator is the task's {role}, which doesn't serve {resource}",
            status=404,
        )
    return task


def _is_authentic(task: Task, resource: str, headers: dict[str, str]) -> bool:
    """Return whether the request has one of the task's tokens, or needs none."""
    if resource == "reports":
        return True
    scheme, _, token = headers.get("authorization", "").partition(" ")
    presented = token.strip() if scheme.lower() == "bearer" else headers.get("dap-auth-token", "")
    return bool(presented) and token_matches(presented, task.inbound_token_hashes)


def _authenticate(task: Task, resource: str, headers: dict[str, str]) -> None:
    """Raise ``Abort`` with 401 unless the request is authentic."""
    if not _is_authentic(task, resource, headers):
        raise Abort(
            None,
            "send the task's token in `Authorization: Bearer` or `DAP-Auth-Token`",
            status=401,
            headers={"WWW-Authenticate": 'Bearer realm="dap"'},
        )


def _require_post(method: str) -> None:
    if method != "POST":
        raise Abort(None, "upload reports with POST", status=405, headers={"Allow": "POST"})


def headers_of(raw: Iterable[tuple[bytes, bytes]]) -> dict[str, str]:
    """Decode header fields, names in lower case; of a repeated field, keep the last."""
    return {name.decode("latin-1").lower(): value.decode("latin-1") for name, value in raw}
