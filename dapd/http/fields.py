"""Parse untrusted header fields, URLs and problem documents."""

from __future__ import annotations

import email.utils
import json
from urllib.parse import SplitResult, urljoin, urlsplit, urlunsplit

from dapd.messages.common import MediaType

_ERROR_URN = "urn:ietf:params:ppm:dap:error:"
_MAX_LOCATION = 2000
_MAX_DETAIL = 500


def message_of(content_type: str | None) -> MediaType | None:
    """Return the protocol message that a Content-Type names, if any.

    Other parameters, such as ``version``, don't matter (rule A10).
    """
    kind, *parameters = (content_type or "").split(";")
    for parameter in parameters:
        name, _, value = parameter.partition("=")
        if name.strip().lower() == "message":
            named = f"{kind.strip()};message={value.strip().strip(chr(34))}".lower()
            return next((each for each in MediaType if each == named), None)
    return None


def parse_retry_after(value: str | None, date: str | None, *, now: float) -> float | None:
    """Parse a Retry-After of either form (RFC 9110, section 10.2.3) into seconds, never negative.

    An HTTP date counts from the answer's own ``date`` (or ``now``, if that is missing), so that a
    peer's wrong clock does no harm. An invalid value gives ``None``.
    """
    if value is None:
        return None
    if value.strip().isdecimal():
        return float(value)
    until = timestamp(value)
    if until is None:
        return None
    since = timestamp(date) if date else None
    return max(0.0, until - (now if since is None else since))


def timestamp(http_date: str) -> float | None:
    """Parse an HTTP date into seconds since the epoch; ``None`` if it is invalid."""
    try:
        return email.utils.parsedate_to_datetime(http_date).timestamp()
    except (ValueError, OverflowError):
        return None


def usable_location(given: str, url: str) -> str | None:
    """Resolve a Location against the request's URL (A5); ``None`` if it has another origin.

    If only the scheme differs, keep the request's: a server behind a TLS proxy believes that its
    own URL begins with ``http://``.
    """
    resolved = _resolved(given, url)
    if resolved is None:
        return None
    asked = urlsplit(url)
    return urlunsplit(resolved._replace(scheme=asked.scheme, netloc=asked.netloc, fragment=""))


def same_origin_redirect(given: str, url: str) -> str | None:
    """Resolve a redirect against the request's URL (A5); ``None`` if it has another origin."""
    resolved = _resolved(given, url)
    if resolved is None or resolved.scheme != urlsplit(url).scheme:
        return None
    return urlunsplit(resolved._replace(fragment=""))


def with_step(location: str, step: int | None) -> str:
    """Set or replace the ``step`` in a Location's query; ``None`` removes it."""
    parts = urlsplit(location)
    query = [item for item in parts.query.split("&") if item and item.partition("=")[0] != "step"]
    if step is not None:
        query.append(f"step={step}")
    return urlunsplit(parts._replace(query="&".join(query)))


def problem(body: bytes) -> tuple[str | None, str]:
    """Parse a problem document (RFC 9457) into (error token, detail).

    Without one, the detail is the body's text; it is empty if the body is binary, such as our own
    request echoed back.
    """
    try:
        document = json.loads(body)
    except (ValueError, RecursionError):
        document = None
    if not isinstance(document, dict):
        text = " ".join(body[:_MAX_DETAIL].decode("utf-8", "replace").split())
        return None, text if text.isprintable() else ""
    urn = document.get("type")
    token = (
        urn.removeprefix(_ERROR_URN)
        if isinstance(urn, str) and urn.startswith(_ERROR_URN)
        else None
    )
    detail = document.get("detail") or document.get("title") or ""
    return token, str(detail)[:_MAX_DETAIL]


def max_age(cache_control: str) -> int | None:
    """Return the seconds for which this Cache-Control allows to keep an answer, if it says so."""
    directives = [item.strip().lower() for item in cache_control.split(",")]
    if "no-store" in directives or "no-cache" in directives:
        return 0
    ages = [item.removeprefix("max-age=") for item in directives if item.startswith("max-age=")]
    return min((int(age) for age in ages if age.isdecimal()), default=None)


def _resolved(given: str, url: str) -> SplitResult | None:
    """Resolve a Location; ``None`` if its host or port is another than the request's. The scheme
    may differ, and with it the default port.
    """
    try:
        resolved = urlsplit(urljoin(url, given))
        same = _server(resolved) == _server(urlsplit(url))
    except ValueError:
        return None
    # The token must not go to another origin, and user info would replace it in our header.
    if not same or len(resolved.geturl()) > _MAX_LOCATION or "@" in resolved.netloc:
        return None
    return resolved


_DEFAULT_PORTS = {"http": 80, "https": 443}


def _server(parts: SplitResult) -> tuple[bool, str | None, int | None]:
    """Return whether the scheme is HTTP's, the host, and the port; ``None`` if that is default."""
    default = _DEFAULT_PORTS.get(parts.scheme)
    return default is not None, parts.hostname, None if parts.port == default else parts.port
