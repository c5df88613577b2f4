"""``GET /api/v1/openapi.json``: the admin interface as an OpenAPI 3.1 document.

It is generated from the operations and their types, so it can't differ from them: descriptions are
docstrings, bounds are the ones that requests are checked against. Left out: the page.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from functools import cache
from http import HTTPStatus
from typing import Any

import msgspec

from dapd import __version__
from dapd.admin import OPERATIONS
from dapd.admin.monitoring import OPEN
from dapd.admin.operation import Operation
from dapd.runtime.context import Context

PATH = "/api/v1/openapi.json"

_REF = "#/components/schemas/{name}"
_JSON, _PROBLEM = "application/json", "application/problem+json"
_TEXT = {"text/plain": {"schema": {"type": "string"}}}
_SERIES = {**_TEXT, "application/openmetrics-text": {"schema": {"type": "string"}}}
_DOCUMENTS = {
    "/metrics": ("metrics", "All series. In Prometheus' text, or in OpenMetrics.", _SERIES),
    "/healthz": ("healthz", "The daemon answers.", _TEXT),
    "/readyz": ("readyz", "The daemon accepts uploads and jobs. If not, 503 says why.", _TEXT),
    PATH: ("openapi", "This document.", {_JSON: {"schema": {"type": "object"}}}),
}
_ABOUT = (
    "Shows and changes a running daemon. The daemon's Unix socket needs no token; other machines "
    "need TLS and a token. Times are RFC 3339 in UTC, errors are problem documents (RFC 9457), and "
    "every change is one audit event."
)
_ANY = (401, 403, 421, 500, 503)
"""Errors that any request may get: 401 and 403 if it needs a token, 421 for an unknown Host."""


class Problem(msgspec.Struct, frozen=True):
    """A problem document (RFC 9457). ``detail`` says what to do. If the daemon itself failed,
    ``instance`` is the request's id in the log.
    """

    type: str
    title: str
    status: int
    detail: str
    instance: str | msgspec.UnsetType = msgspec.UNSET


async def show(_context: Context, _: dict[str, str]) -> tuple[int, list[tuple[str, str]], bytes]:
    """Return the document."""
    return 200, [("Content-Type", _JSON), ("Cache-Control", "no-store")], encoded()


@cache
def encoded() -> bytes:
    """Return the document as JSON, always in the same order."""
    return msgspec.json.encode(document(), order="sorted")


def document() -> dict[str, Any]:
    """Build the document."""
    paths: dict[str, dict[str, Any]] = {}
    for path, (name, text, content) in _DOCUMENTS.items():
        paths[path] = {"get": _document(path, name, text, content)}
    for each in OPERATIONS:
        paths.setdefault(each.path, {})[each.method.lower()] = _operation(each)
    types = {each.response for each in OPERATIONS}
    types |= {each.request for each in OPERATIONS if each.method == "POST"}
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "dapd's admin interface",
            "version": __version__,
            "description": _ABOUT,
            "license": {"name": "MPL-2.0", "identifier": "MPL-2.0"},
        },
        "servers": [{"url": "/"}],
        "paths": paths,
        "components": {
            "schemas": _components([*types, Problem]),
            "securitySchemes": {
                "token": {
                    "type": "http",
                    "scheme": "bearer",
                    "description": "A token from `dapd admin token`; its scope is `read`, or "
                    "`operate` for all operations.",
                }
            },
        },
    }


def _operation(operation: Operation[Any, Any]) -> dict[str, Any]:
    text = prose(operation.run.__doc__)
    posts = operation.method == "POST"
    described: dict[str, Any] = {
        "operationId": operation.name,
        "summary": _summary(text),
        "description": text,
        "security": [{"token": [operation.scope]}],
        "responses": {
            "200": _response("Done." if posts else "The current state.", _JSON, operation.response),
            **_problems((400, *_ANY, 409, *((413, 415) if posts else ()))),
        },
    }
    if posts:
        content = {_JSON: {"schema": _reference(operation.request)}}
        described["requestBody"] = {"required": True, "content": content}
    elif parameters := _parameters(operation.request):
        described["parameters"] = parameters
        described["description"] = f"{text} {prose(operation.request.__doc__)}"
    return described


def _document(path: str, name: str, text: str, content: dict[str, Any]) -> dict[str, Any]:
    needs_token = path not in OPEN
    statuses = _ANY if needs_token else tuple(each for each in _ANY if each not in (401, 403))
    return {
        "operationId": name,
        "summary": _summary(text),
        "description": text,
        "security": [{"token": ["read"]}] if needs_token else [],
        "responses": {
            "200": {"description": "The current state.", "content": content},
            **_problems(statuses),
        },
    }


def _problems(statuses: Iterable[int]) -> dict[str, Any]:
    return {
        str(status): _response(HTTPStatus(status).phrase, _PROBLEM, Problem)
        for status in sorted(statuses)
    }


def _response(text: str, content_type: str, type: type[Any]) -> dict[str, Any]:
    return {"description": text, "content": {content_type: {"schema": _reference(type)}}}


def _reference(type: type[Any]) -> dict[str, str]:
    return {"$ref": _REF.format(name=type.__name__)}


def _parameters(request: type[Any]) -> list[dict[str, Any]]:
    """Return a GET's fields. An optional one is left out of a query, never null."""
    schema = _components([request])[request.__name__]
    return [
        {
            "name": name,
            "in": "query",
            "required": name in schema["required"],
            "schema": _without_null(value),
        }
        for name, value in schema["properties"].items()
    ]


def _without_null(schema: dict[str, Any]) -> dict[str, Any]:
    if "anyOf" not in schema:
        return schema
    [there] = [each for each in schema["anyOf"] if each != {"type": "null"}]
    return dict(there)


def _components(types: Iterable[type[Any]]) -> dict[str, dict[str, Any]]:
    _, components = msgspec.json.schema_components(list(types), ref_template=_REF)
    for each in components.values():
        if "description" in each:
            each["description"] = prose(each["description"])
    return components


def _summary(text: str) -> str:
    return re.split(r"[.:;](?: |$)", text)[0]


def prose(docstring: str | None) -> str:
    """Return a docstring as one paragraph, without the exceptions that it names."""
    text = " ".join((docstring or "").replace("``", "`").split())
    return re.sub(r" ?\bRaises [^.]*\.", "", text)
