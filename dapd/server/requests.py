"""Read requests and build responses: what the handlers of all resources share (rules A4, A10)."""

from __future__ import annotations

from quart import Request, Response
from structlog.contextvars import bind_contextvars
from werkzeug.exceptions import RequestEntityTooLarge

from dapd.errors import Abort
from dapd.http.fields import message_of
from dapd.messages.common import MediaType, b64url_decode
from dapd.protocol.task import Task
from dapd.wording import count


def require_media_type(value: str | None, expected: MediaType) -> None:
    """Raise ``Abort`` with 415 unless the Content-Type names the expected message (rule A10)."""
    if message_of(value) is not expected:
        raise Abort(None, f"Content-Type must be {expected.value}", status=415)


def task_of(request: Request) -> Task:
    """Return the task that ``dapd.server.front`` has found for this request."""
    task: Task = request.scope["dapd.task"]  # type: ignore[typeddict-item]
    return task


async def body_of(request: Request, expected: MediaType) -> bytes:
    """Return the request's body. Raises ``Abort`` with 415 or 413."""
    require_media_type(request.headers.get("Content-Type"), expected)
    try:
        body = await request.get_data(cache=False, as_text=False)
    except RequestEntityTooLarge:
        most = count(request.max_content_length or 0, "byte")
        raise Abort(None, f"a request body may have at most {most}", status=413) from None
    assert isinstance(body, bytes)
    return body


def resource_id(text: str) -> bytes | None:
    """Decode a 16-byte resource id from a URL and bind it to log lines; ``None`` if it is none."""
    try:
        decoded = b64url_decode(text)
    except ValueError:
        return None
    if len(decoded) != 16:
        return None
    bind_contextvars(job_id=text)
    return decoded


def ready(body: bytes, content: MediaType, location: str | None = None) -> Response:
    """Return a response with the resource's representation."""
    headers = {"Content-Type": content.value}
    if location is not None:
        headers["Location"] = location
    return Response(body, status=200, headers=headers)


def processing(location: str, retry_after: float) -> Response:
    """Return an empty "not ready" response that says where and when to ask again, to POST and GET
    alike (rule A4).
    """
    # This may round to "at once": the GET is then held until the result is there.
    seconds = round(retry_after)
    response = Response(b"", status=200)
    response.headers.pop("Content-Type", None)
    response.headers["Location"] = location
    response.headers["Retry-After"] = str(seconds)
    return response


def done() -> Response:
    """Return an empty response: the resource is deleted, or was before."""
    response = Response(b"", status=200)
    response.headers.pop("Content-Type", None)
    return response
