"""The HTTP client of DAP: send, poll, delete (sections "HTTP Usage" and "Errors").

Every exchange returns one of these values and never raises:

- ``Ready``: the resource's representation, of the expected media type;
- ``Processing``: the peer works on it; poll ``location``;
- ``Refused``: a 4xx that says what is wrong with the request;
- ``Unknown``: no usable answer: no connection, a truncated or oversized body, a wrong media type,
  a redirect, an empty answer with a Location of another origin, 408, 425, 429, 5xx. The peer may or
  may not have carried out the request. ``status`` is ``None`` unless a whole answer arrived.

Callers decide which refusals are final (rule D4) and parse the bodies. This client follows only
redirects with 307 or 308 within the origin (rule A5), keeps no cookies and decompresses no bodies:
callers get what the peer sent. ``until_known`` repeats an exchange for callers that can wait; the
Leader's driver never waits (I5).

    async with DapHttp(timeout=30) as http:
        match await http.create(url, body, MediaType.AGGREGATION_JOB_INIT_REQ, token):
            case Ready(body, location): ...
"""

from __future__ import annotations

import logging
import os
import random
import ssl
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from functools import cache
from http.cookiejar import CookieJar, DefaultCookiePolicy
from pathlib import Path
from typing import Self, TypeVar
from urllib.parse import urlsplit

import httpx2
import trio

from dapd.errors import UsageError
from dapd.http.fields import (
    max_age,
    message_of,
    parse_retry_after,
    problem,
    same_origin_redirect,
    timestamp,
    usable_location,
    with_step,
)
from dapd.messages.common import MediaType
from dapd.protocol.outcome import Outcome, Processing, Ready, Refused, Unknown
from dapd.protocol.retry import LONGEST_RETRY_AFTER, backoff_ms

__all__ = [
    "DapHttp",
    "Outcome",
    "Patience",
    "Processing",
    "Ready",
    "Refused",
    "Unknown",
    "resource_url",
    "trusting",
    "until_known",
]

T = TypeVar("T")
OnDate = Callable[[str, int], None]

# httpx2 logs every request at INFO, with its URL; an application can set the level back.
logging.getLogger("httpx2").setLevel(logging.WARNING)

# The representation that each creation request yields (appendix "HTTP Resources Reference").
_ANSWERS = {
    MediaType.AGGREGATION_JOB_INIT_REQ: MediaType.AGGREGATION_JOB_RESP,
    MediaType.AGGREGATE_SHARE_REQ: MediaType.AGGREGATE_SHARE,
    MediaType.COLLECTION_JOB_REQ: MediaType.COLLECTION_JOB_RESP,
}

# These statuses ask for another try; they say nothing about the request itself.
_NOT_JUDGED = (408, 425, 429)

# Redirects with these statuses keep method and body, so the repeated request is the same one.
_FOLLOWED = (307, 308)
_MOST_REDIRECTS = 3

# Many servers close an idle connection after five seconds. A request sent at that very moment is
# lost and its outcome unknown, so we close ours earlier.
_KEEPALIVE_SECONDS = 4.0


@dataclass(frozen=True, slots=True)
class Patience:
    """How often to attempt an exchange of unknown outcome, and how many seconds to wait between."""

    attempts: int = 6
    minimum: float = 0.5
    maximum: float = 30.0


@dataclass(frozen=True, slots=True)
class _Request:
    method: str
    headers: dict[str, str]
    body: bytes | None


@dataclass(frozen=True, slots=True)
class _Answer:
    """An answer from ``url``: the request's own, or where a redirect has led."""

    url: str
    status: int
    headers: httpx2.Headers
    body: bytes


class DapHttp:
    """An HTTP client for any number of peers, with a pool of connections; a context manager.

    Args:
        timeout: seconds for one whole exchange, from waiting for a connection to the last byte; may
            be set at any time, for the exchanges that begin then.
        max_body: an answer longer than this many bytes is ``Unknown``.
        max_retry_after: a longer Retry-After is cut to this many seconds.
        max_connections: the limit for all peers together.
        tls: a context that replaces the system's trust store; see ``trusting``.
        on_request: called before each request is sent; what it returns is told the origin of the
            answer and its ``Date`` in milliseconds, if it has one.
    """

    def __init__(
        self,
        *,
        timeout: float = 30.0,
        max_body: int = 64 * 2**20,
        max_retry_after: float = LONGEST_RETRY_AFTER,
        max_connections: int = 100,
        tls: ssl.SSLContext | None = None,
        on_request: Callable[[], OnDate] | None = None,
    ) -> None:
        self._on_request = on_request
        self.timeout = timeout
        self._max_body = max_body
        self._max_retry_after = max_retry_after
        self._max_connections = max_connections
        self._pool = _Pool(max_connections, tls)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """Close every connection."""
        await self._pool.aclose()

    async def trust(self, tls: ssl.SSLContext | None) -> None:
        """Use ``tls``, or the system's trust store, for new connections. Running exchanges finish
        on their present connections.
        """
        before, self._pool = self._pool, _Pool(self._max_connections, tls)
        await before.retire()

    async def create(self, url: str, body: bytes, media_type: MediaType, token: str) -> Outcome:
        """POST ``body`` to a creation URL. An empty 2xx means ``Processing`` (rule A5).

        ``media_type`` is the body's; it also determines the media type of a ready answer.
        """
        answer = await self._exchange("POST", url, token, body, media_type)
        return self._resource(answer, _ANSWERS[media_type], polled=None)

    async def poll(
        self, location: str, token: str, expect: MediaType, *, step: int | None = None
    ) -> Outcome:
        """GET a resource of media type ``expect``; ``step`` for aggregation jobs (rule A5)."""
        url = with_step(location, step)
        answer = await self._exchange("GET", url, token)
        return self._resource(answer, expect, polled=url)

    async def delete(self, location: str, token: str) -> Ready | Refused | Unknown:
        """DELETE a resource, without ``step`` (rule A5). Any 2xx is ``Ready``."""
        answer = await self._exchange("DELETE", with_step(location, None), token)
        match answer:
            case _Answer() if _succeeded(answer):
                return Ready(b"")
            case _Answer():
                return self._failure(answer)
            case Unknown():
                return answer

    async def upload(
        self, url: str, body: bytes, token: str | None = None
    ) -> Ready | Refused | Unknown:
        """POST an ``UploadRequest``. ``Ready`` with an empty body means: all reports accepted."""
        answer = await self._exchange("POST", url, token, body, MediaType.UPLOAD_REQ)
        return self._representation(answer, MediaType.UPLOAD_ERRORS, may_be_empty=True)

    async def get(self, url: str, expect: MediaType) -> Ready | Refused | Unknown:
        """GET a resource of media type ``expect`` that needs no token."""
        answer = await self._exchange("GET", url, None)
        return self._representation(answer, expect, may_be_empty=False)

    async def _exchange(
        self,
        method: str,
        url: str,
        token: str | None,
        body: bytes | None = None,
        media_type: MediaType | None = None,
    ) -> _Answer | Unknown:
        headers = {}
        if token is not None:
            headers["Authorization"] = f"Bearer {token}"
        if media_type is not None:
            headers["Content-Type"] = media_type
        request = _Request(method, headers, body)
        timeout = self.timeout
        async with self._pool.used() as client:
            with trio.move_on_after(timeout) as scope:
                answer = await self._send(client, request, url, scope.deadline)
                for _ in range(_MOST_REDIRECTS):
                    target = None if isinstance(answer, Unknown) else _redirect_target(answer)
                    if target is None:
                        break
                    answer = await self._send(client, request, target, scope.deadline)
        if scope.cancelled_caught:
            return Unknown(f"{method} {url}: no whole answer within {timeout:g} s")
        if token is None or isinstance(answer, Unknown) or _succeeded(answer):
            return answer
        # An error page may echo our request; keep the token out of our log (I9).
        return replace(answer, body=answer.body.replace(token.encode(), b"(the token)"))

    async def _send(
        self, client: httpx2.AsyncClient, request: _Request, url: str, deadline: float
    ) -> _Answer | Unknown:
        """Send the request once, to this URL; the caller cancels it at the deadline."""
        what = f"{request.method} {url}"
        # httpx2 leaks a connection if Trio cancels its handshake, so httpx2's own timeout must
        # expire first. It covers connecting and the handshake each, therefore half.
        connecting = max(0, deadline - trio.current_time()) / 2
        body_read = bytearray()
        try:
            built = client.build_request(
                request.method,
                url,
                content=request.body,
                headers=request.headers,
                timeout=httpx2.Timeout(None, connect=connecting),
            )
            on_date = self._on_request and self._on_request()
            response = await client.send(built, stream=True)
            if on_date is not None:
                _tell_date(on_date, url, response.headers)
            try:
                with trio.CancelScope() as reading:
                    async for piece in response.aiter_raw():
                        body_read += piece
                        if len(body_read) > self._max_body:
                            # Not `break`, which would leave httpx2's generators unfinished until
                            # Python's garbage collector finds them.
                            reading.cancel()
            finally:
                await response.aclose()
        except httpx2.ConnectTimeout:
            return Unknown(f"{what}: no connection within {round(connecting, 1):g} s")
        except (httpx2.HTTPError, httpx2.InvalidURL, OSError) as error:
            return Unknown(f"{what}: {_why(error)}")
        if len(body_read) > self._max_body:
            return Unknown(f"{what}: an answer longer than {self._max_body} bytes")
        return _Answer(url, response.status_code, response.headers, bytes(body_read))

    def _resource(
        self, answer: _Answer | Unknown, expect: MediaType, *, polled: str | None
    ) -> Outcome:
        """Interpret an answer to a poll of the URL ``polled``, or if ``None`` to a creation.

        A complete answer stays complete if its Location has another origin (rule A5).
        """
        if isinstance(answer, Unknown):
            return answer
        if not _succeeded(answer):
            return self._failure(answer)
        given = answer.headers.get("Location")
        location = None if given is None else usable_location(given, answer.url)
        if answer.body:
            ready = _ready(answer, expect)
            if isinstance(ready, Unknown):
                return ready
            elsewhere = given[:200] if given is not None and location is None else None
            return replace(ready, location=location, elsewhere=elsewhere)
        where = location or polled
        if where is not None:
            return Processing(where, self._retry_after(answer))
        if given is None:
            return Unknown("an empty answer without a Location", answer.status)
        return Unknown(f"a Location that can't be used: {given[:200]}", answer.status)

    def _representation(
        self, answer: _Answer | Unknown, expect: MediaType, *, may_be_empty: bool
    ) -> Ready | Refused | Unknown:
        """Interpret an answer where there is nothing to poll."""
        if isinstance(answer, Unknown):
            return answer
        if not _succeeded(answer):
            return self._failure(answer)
        if not answer.body and may_be_empty:
            return Ready(b"")
        return _ready(answer, expect)

    def _failure(self, answer: _Answer) -> Refused | Unknown:
        status = answer.status
        type_, detail = problem(answer.body)
        if 400 <= status < 500 and status not in _NOT_JUDGED:
            return Refused(status, type_, detail, self._retry_after(answer))
        if 300 <= status < 400:
            detail = f"redirected to {answer.headers.get('Location', 'nowhere')}, not followed"
        reason = f"HTTP {status}: {detail}" if detail else f"HTTP {status}"
        return Unknown(reason, status, self._retry_after(answer))

    def _retry_after(self, answer: _Answer) -> float | None:
        seconds = parse_retry_after(
            answer.headers.get("Retry-After"), answer.headers.get("Date"), now=time.time()
        )
        return None if seconds is None else min(seconds, self._max_retry_after)


def _tell_date(on_date: OnDate, url: str, headers: httpx2.Headers) -> None:
    """Say what time it is there, unless a cache kept the answer."""
    date = headers.get("Date")
    if date is None or "Age" in headers:
        return
    seconds = timestamp(date)
    if seconds is not None:
        parts = urlsplit(url)
        origin = f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}"
        on_date(origin, int(seconds * 1000))


class _Pool:
    """The connections made with one trust store; ``retire`` closes it after its last exchange."""

    def __init__(self, max_connections: int, tls: ssl.SSLContext | None) -> None:
        self._users = 0
        self._retired = False
        limits = httpx2.Limits(
            max_connections=max_connections,
            max_keepalive_connections=max_connections,
            keepalive_expiry=_KEEPALIVE_SECONDS,
        )
        self._client = httpx2.AsyncClient(
            verify=tls
            or _system_trust(os.environ.get("SSL_CERT_FILE"), os.environ.get("SSL_CERT_DIR")),
            timeout=None,  # _exchange limits the time of the whole exchange
            limits=limits,
            cookies=CookieJar(DefaultCookiePolicy(allowed_domains=[])),
            headers={"User-Agent": "dapd", "Accept-Encoding": "identity"},
            # A proxy from the environment is not for connections to this machine.
            mounts={f"all://{host}": None for host in ("127.0.0.1", "localhost", "[::1]")},
        )

    @asynccontextmanager
    async def used(self) -> AsyncIterator[httpx2.AsyncClient]:
        """Yield the client for one exchange."""
        self._users += 1
        try:
            yield self._client
        finally:
            self._users -= 1
            if self._retired and not self._users:
                await self.aclose()

    async def retire(self) -> None:
        self._retired = True
        if not self._users:
            await self.aclose()

    async def aclose(self) -> None:
        with trio.CancelScope(shield=True):
            await self._client.aclose()


@cache
def _system_trust(_file: str | None, _directory: str | None) -> ssl.SSLContext:
    """Return httpx2's own context for the system's trust store, once for each place that the
    environment names: reading a hundred authorities takes longer than most exchanges.
    """
    return httpx2.create_ssl_context()


def trusting(authorities: Path) -> ssl.SSLContext:
    """Return a context for ``DapHttp(tls=...)`` that trusts only the authorities in a PEM file.

    Raises ``UsageError``.
    """
    try:
        return ssl.create_default_context(cafile=authorities)
    except ssl.SSLError as error:
        raise UsageError(f"{authorities}: no certificate in PEM format in this file") from error
    except OSError as error:
        raise UsageError(f"{authorities}: {error.strerror}; let this user read it") from error


async def until_known(exchange: Callable[[], Awaitable[T]], patience: Patience) -> tuple[T, int]:
    """Repeat an exchange until its outcome is known; return (last outcome, times sent)."""
    for sent in range(1, patience.attempts):
        outcome = await exchange()
        if not isinstance(outcome, Unknown):
            return outcome, sent
        jitter = random.random()  # noqa: S311 - spreads the retries of many clients; no secret
        wait = backoff_ms(sent, patience.minimum, patience.maximum, jitter) / 1000
        await trio.sleep(max(wait, outcome.retry_after or 0))
    return await exchange(), patience.attempts


def resource_url(endpoint: str, *segments: str) -> str:
    """Append path segments to an endpoint, which stays as it is byte for byte (rule B7)."""
    return endpoint.removesuffix("/") + "/" + "/".join(segments)


def _why(error: BaseException) -> str:
    """Return the first non-empty message among the error and its causes; that of a failed TLS
    handshake, for example, is empty.
    """
    cause: BaseException | None = error
    while cause is not None:
        if text := str(cause):
            return text
        cause = cause.__cause__ or cause.__context__
    return type(error).__name__


def _succeeded(answer: _Answer) -> bool:
    return 200 <= answer.status < 300


def _ready(answer: _Answer, expect: MediaType) -> Ready | Unknown:
    content_type = answer.headers.get("Content-Type")
    if message_of(content_type) is not expect:  # A10
        return Unknown(f"the answer's media type is {content_type}, not {expect}", answer.status)
    if answer.headers.get("Content-Encoding", "identity").lower() != "identity":
        return Unknown("the answer is compressed, but dapd did not ask for that", answer.status)
    return Ready(answer.body, max_age=max_age(answer.headers.get("Cache-Control", "")))


def _redirect_target(answer: _Answer) -> str | None:
    """Return the URL to send the same request to again, if this is such a redirect (rule A5)."""
    given = answer.headers.get("Location")
    if answer.status not in _FOLLOWED or given is None:
        return None
    return same_origin_redirect(given, answer.url)
