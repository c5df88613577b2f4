"""What stands in front of the handlers: routes by their tail, the task, its role, its token.

A plain ASGI function, so that the busiest route, uploads, meets nothing else on its way. Routes
match by their tail under any prefix, so that dapd is right behind a proxy that strips the prefix or
doesn't. Authentication comes before the body is read (rule A9).
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

_TAIL = re.compile(
    r"(?:/hpke_config|/tasks/(?P<task>[^/]*)"
    r"/(?P<resource>reports|aggregation_jobs|aggregate_shares|collection_jobs)(?:/[^/]*)?)\Z"
)
_SERVED_BY_LEADER = frozenset({"reports", "collection_jobs"})


def front(context: Context, inner: App) -> App:
    """The daemon's ASGI application; ``inner`` serves all but uploads."""

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "websocket":
            await send({"type": "websocket.close"})
            return
        begin_request()
        task_text = None
        match = _TAIL.search(scope["path"])
        route = "unknown" if match is None else match["resource"] or "hpke_config"
        send = _measured(context.metrics, route, send)
        try:
            if match:
                scope = {**scope, "path": match[0], "raw_path": match[0].encode(), "root_path": ""}
                if resource := match["resource"]:
                    task_text = match["task"]
                    task = await _task(context, task_text, resource)
                    structlog.contextvars.bind_contextvars(task_id=task.id_text)
                    headers = headers_of(scope["headers"])
                    if not _may_pass(task, resource, headers):
                        await context.tasks.refresh()  # E5: a token may have been added just now
                        task = await _task(context, task_text, resource)
                        _authenticate(task, resource, headers)
                    if resource == "reports" and match[0].endswith("/reports"):
                        _require_post(scope["method"])
                        await reports.upload(context, task, headers, receive, send)
                        return
                    scope["dapd.task"] = task
            await inner(scope, *_uncut(receive, send))
        except Abort as abort:
            await respond(send, *problem_document(abort, task_text))
        except Exception as error:  # noqa: BLE001 - the edge: logged once, and the daemon goes on
            await respond(send, *failure_document(error, route, task_text))

    return app


def _measured(metrics: Metrics, route: str, send: Send) -> Send:
    """``send`` that counts the answer by its route and status, and how long it took to begin."""
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
    """One whole response."""
    raw = [(name.lower().encode(), value.encode("latin-1")) for name, value in headers]
    raw.append((b"content-length", str(len(body)).encode()))
    await send({"type": "http.response.start", "status": status, "headers": raw})
    await send({"type": "http.response.body", "body": body})


def _uncut(receive: Receive, send: Send) -> tuple[Receive, Send]:
    """``receive`` and ``send`` for quart-trio: no "disconnect" once the last ``send`` has begun.

    hypercorn tells a handler that its response is complete from within the last ``send``, and
    quart-trio cancels the handler then, which cuts hypercorn short before it watches the connection
    as an idle one again: without a keep-alive limit it would outlive a stop until grace is over.
    """
    ending = False

    async def uncut_receive() -> dict[str, Any]:
        event = await receive()
        if ending:
            await trio.sleep_forever()  # until the handler, which has returned, ends its nursery
        return event

    async def uncut_send(message: dict[str, Any]) -> None:
        nonlocal ending
        ending = message["type"] == "http.response.body" and not message.get("more_body", False)
        await send(message)

    return uncut_receive, uncut_send


async def _task(context: Context, text: str, resource: str) -> Task:
    try:
        task = await context.tasks.find(b64url_decode(text))
    except ValueError:
        task = None
    if task is None:
        raise Abort("unrecognizedTask", "no task with this ID is known here", status=404)
    if task.is_leader is not (resource in _SERVED_BY_LEADER):
        role = "Leader" if task.is_leader else "Helper"
        raise Abort(
            "unrecognizedTask", f"this is the task's {role}, which serves no {resource}", status=404
        )
    return task


def _may_pass(task: Task, resource: str, headers: dict[str, str]) -> bool:
    if resource == "reports":
        return True
    scheme, _, token = headers.get("authorization", "").partition(" ")
    presented = token.strip() if scheme.lower() == "bearer" else headers.get("dap-auth-token", "")
    return bool(presented) and token_matches(presented, task.inbound_token_hashes)


def _authenticate(task: Task, resource: str, headers: dict[str, str]) -> None:
    if not _may_pass(task, resource, headers):
        raise Abort(
            None,
            "this resource needs the task's token, as `Authorization: Bearer` or `DAP-Auth-Token`",
            status=401,
            headers={"WWW-Authenticate": 'Bearer realm="dap"'},
        )


def _require_post(method: str) -> None:
    if method != "POST":
        raise Abort(None, "reports are uploaded by POST", status=405, headers={"Allow": "POST"})


def headers_of(raw: Iterable[tuple[bytes, bytes]]) -> dict[str, str]:
    """Names in lower case; of a repeated one the last counts."""
    return {name.decode("latin-1").lower(): value.decode("latin-1") for name, value in raw}
