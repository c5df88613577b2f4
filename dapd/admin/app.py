"""The admin interface's ASGI application: routes, decodes, runs, audits and answers operations.

JSON in, JSON out, errors as problem documents (RFC 9457). Every change logs one ``admin_changed``
event with the request and its caller: a user of this machine, or a token. A change that is refused
or fails logs ``admin_change_failed``. Left out: access (``dapd.admin.access``), and the listeners
(``dapd.app``).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import msgspec
import structlog

from dapd.admin import OPERATIONS, monitoring, openapi, page
from dapd.admin.access import Door, Loopback, Socket, World
from dapd.admin.operation import Document, Operation
from dapd.config.loading import explain
from dapd.errors import Abort, DatastoreError, UsageError, describe
from dapd.runtime.context import Context
from dapd.server.front import App, Receive, Scope, Send, headers_of, respond
from dapd.server.problems import Headers, failure_document, problem_document
from dapd.server.reports import read_body
from dapd.telemetry.log_context import begin_request

_audit = structlog.wrap_logger(None, wrapper_class=structlog.make_filtering_bound_logger("info"))
"""Ignores the log's level: raising it must not hide changes."""
_MAX_BODY = 64 * 1024
_HEADERS = [("Content-Type", "application/json"), ("Cache-Control", "no-store")]
_SAME_ORIGIN = ("Cross-Origin-Resource-Policy", "same-origin")
"""Keeps pages of other origins from loading it as a script or image, which needs no CORS."""


Documents = Mapping[str, Document]


def control(context: Context, watched: Documents) -> App:
    """Return the application on the socket, which serves all; ``watched`` is for monitoring."""
    return build(context, OPERATIONS, _everything(watched), Socket(context))


def listener(context: Context, watched: Documents) -> App:
    """Return the application over TCP; on loopback, where callers are unknown, no operations."""
    admin = context.config.admin
    if admin.is_remote:
        return build(context, OPERATIONS, _everything(watched), World(context))
    shown = page.DOCUMENTS if admin.page else {}
    return build(context, (), {**watched, **shown}, Loopback(context))


def _everything(watched: Documents) -> Documents:
    return {**watched, **page.DOCUMENTS, openapi.PATH: openapi.show}


def build(
    context: Context, operations: Sequence[Operation[Any, Any]], documents: Documents, door: Door
) -> App:
    """Return an application that serves ``operations`` and ``documents`` if ``door`` admits."""
    routes: dict[str, dict[str, Operation[Any, Any]]] = {}
    for each in operations:
        routes.setdefault(each.path, {})[each.method] = each

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "websocket":
            await send({"type": "websocket.close"})
            return
        begin_request()
        headers, path = headers_of(scope["headers"]), scope["path"]
        try:
            door.enter(scope, headers)
            if path in documents:
                _require_get(scope["method"])
                door.admit(scope, headers, None if path in monitoring.OPEN else "read")
                await _respond(send, *await documents[path](context, headers))
                return
            operation = _routed(routes, scope)
            caller = door.admit(scope, headers, operation.scope)
            body = await _answer(context, operation, scope, receive, caller)
        except Exception as error:  # noqa: BLE001 - answered, so that the daemon goes on
            await _respond(send, *_refusal(error, path))
            return
        if body is not None:
            await _respond(send, 200, _HEADERS, body)

    return app


async def _respond(send: Send, status: int, headers: Headers, body: bytes) -> None:
    await respond(send, status, [*headers, _SAME_ORIGIN], body)


async def _answer(
    context: Context,
    operation: Operation[Any, Any],
    scope: Scope,
    receive: Receive,
    caller: dict[str, Any],
) -> bytes | None:
    """Return the response's JSON; ``None`` if the caller left before its request was complete."""
    headers = headers_of(scope["headers"])
    body = await read_body(headers, receive, _MAX_BODY)
    if body is None:
        return None
    if operation.method == "POST":
        _require_json(headers)
    elif body:
        raise Abort(None, "a GET has no body; put its fields into the query", status=400)
    request = operation.decode(scope["query_string"], body)
    if operation.method == "GET":
        return msgspec.json.encode(await operation.run(context, request))
    with _audited(operation.name, operation.described(request), caller):
        response = await operation.run(context, request)
    return msgspec.json.encode(response)


@contextmanager
def _audited(name: str, request: dict[str, Any], caller: dict[str, Any]) -> Iterator[None]:
    """Log the event of a change. One that failed, or that a stop ended, may be done in part."""
    try:
        yield
    except BaseException as error:
        _audit.info(
            "admin_change_failed",
            operation=name,
            request=request,
            error=describe(error),
            **caller,
        )
        raise
    _audit.info("admin_changed", operation=name, request=request, **caller)


def _routed(routes: dict[str, dict[str, Operation[Any, Any]]], scope: Scope) -> Operation[Any, Any]:
    methods = routes.get(scope["path"])
    if methods is None:
        raise Abort(None, "the admin interface serves nothing at this path", status=404)
    operation = methods.get(scope["method"])
    if operation is None:
        allowed = ", ".join(methods)
        raise Abort(None, f"only {allowed} is allowed here", status=405, headers={"Allow": allowed})
    return operation


def _require_get(method: str) -> None:
    if method not in ("GET", "HEAD"):
        raise Abort(None, "only GET is allowed here", status=405, headers={"Allow": "GET, HEAD"})


def _require_json(headers: dict[str, str]) -> None:
    # A browser sends other types across origins without asking first.
    if headers.get("content-type", "").partition(";")[0].strip().lower() != "application/json":
        raise Abort(None, "Content-Type must be application/json", status=415)


def _refusal(error: Exception, path: str) -> tuple[int, Headers, bytes]:
    """Return an exception as a problem document; log the daemon's own failures."""
    match error:
        case Abort():
            abort = error
        case msgspec.ValidationError():
            abort = Abort(None, explain(error), status=400)
        case msgspec.DecodeError() | UnicodeDecodeError():
            abort = Abort(None, f"the body is not JSON: {error}", status=400)
        case UsageError():
            abort = Abort(None, str(error), status=409)
        case DatastoreError():
            return failure_document(error, path, None, Abort(None, str(error), status=503))
        case _:
            return failure_document(error, path, None)
    return problem_document(abort, None)
