"""What the handlers of all resources share: reading a request, answering one (rules A4, A10)."""

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
    """Raise ``Abort`` with 415 unless the content is this message (rule A10)."""
    if message_of(value) is not expected:
        raise Abort(None, f"Content-Type must be {expected.value}", status=415)


def task_of(request: Request) -> Task:
    """The task that the front found and authenticated."""
    task: Task = request.scope["dapd.task"]  # type: ignore[typeddict-item]
    return task


async def body_of(request: Request, expected: MediaType) -> bytes:
    """The request's content. Raises ``Abort`` with 415 or 413."""
    require_media_type(request.headers.get("Content-Type"), expected)
    try:
        body = await request.get_data(cache=False, as_text=False)
    except RequestEntityTooLarge:
        most = count(request.max_content_length or 0, "byte")
        raise Abort(None, f"a request may have at most {most}", status=413) from None
    assert isinstance(body, bytes)
    return body


def resource_id(text: str) -> bytes | None:
    """A 16-byte resource id out of a URL, which log lines then carry; ``None`` if it is none."""
    try:
        decoded = b64url_decode(text)
    except ValueError:
        return None
    if len(decoded) != 16:
        return None
    bind_contextvars(job_id=text)
    return decoded


def ready(body: bytes, content: MediaType, location: str | None = None) -> Response:
    """The resource's representation."""
    headers = {"Content-Type": content.value}
    if location is not None:
        headers["Location"] = location
    return Response(body, status=200, headers=headers)


def processing(location: str, retry_after: float) -> Response:
    """Not ready: empty, with where and when to ask again; alike for POST and GET (rule A4)."""
    # Rounded down to "at once" where the answer is near: the GET is held until it is there.
    seconds = round(retry_after)
    response = Response(b"", status=200)
    response.headers.pop("Content-Type", None)
    response.headers["Location"] = location
    response.headers["Retry-After"] = str(seconds)
    return response


def done() -> Response:
    """The resource is deleted, or was before."""
    response = Response(b"", status=200)
    response.headers.pop("Content-Type", None)
    return response
