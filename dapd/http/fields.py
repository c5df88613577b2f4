"""What stands in header fields, URLs and problem documents, as far as it can be believed. Pure."""

from __future__ import annotations

import email.utils
import json
from urllib.parse import urljoin, urlsplit, urlunsplit

from dapd.messages.common import MediaType

_ERROR_URN = "urn:ietf:params:ppm:dap:error:"
_MAX_LOCATION = 2000
_MAX_DETAIL = 500


def message_of(content_type: str | None) -> MediaType | None:
    """Which protocol message a Content-Type names, if any.

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
    """Seconds from a Retry-After of either form (RFC 9110, section 10.2.3); never negative.

    An HTTP date is measured against the answer's own ``date``, so that a peer's wrong clock does
    no harm; ``now`` stands in for a missing one. What can't be read is ``None``.
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
    """Seconds since the Epoch; ``None`` if it can't be read."""
    try:
        return email.utils.parsedate_to_datetime(http_date).timestamp()
    except (ValueError, OverflowError):
        return None


def usable_location(given: str, url: str) -> str | None:
    """A Location, resolved against the request's URL (rule A5); ``None`` if it leads elsewhere."""
    try:
        resolved = urljoin(url, given)
        same = _origin(resolved) == _origin(url)
    except ValueError:
        return None
    # Its token must not go elsewhere; user info would replace the token in our own header.
    if not same or len(resolved) > _MAX_LOCATION or "@" in urlsplit(resolved).netloc:
        return None
    return urlunsplit(urlsplit(resolved)._replace(fragment=""))


def with_step(location: str, step: int | None) -> str:
    """The Location with this ``step``, in place of the one that it had."""
    parts = urlsplit(location)
    query = [item for item in parts.query.split("&") if item and item.partition("=")[0] != "step"]
    if step is not None:
        query.append(f"step={step}")
    return urlunsplit(parts._replace(query="&".join(query)))


def problem(body: bytes) -> tuple[str | None, str]:
    """(error token, detail) of a problem document (RFC 9457), or of what text came instead; bytes
    that are no text, such as our request's, are nobody's words.
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
    """Seconds for which an answer with this Cache-Control may be kept, if it says so."""
    directives = [item.strip().lower() for item in cache_control.split(",")]
    if "no-store" in directives or "no-cache" in directives:
        return 0
    ages = [item.removeprefix("max-age=") for item in directives if item.startswith("max-age=")]
    return min((int(age) for age in ages if age.isdecimal()), default=None)


def _origin(url: str) -> tuple[str, str | None, int | None]:
    parts = urlsplit(url)
    return parts.scheme, parts.hostname, parts.port or {"http": 80, "https": 443}.get(parts.scheme)
