"""The outcomes of an HTTP exchange with the peer.

Sections "HTTP Usage", "Errors" and "Asynchronous Request Handling". ``dapd.http`` makes the
exchange; ``dapd.protocol.exchange`` decides how a job continues after it.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Ready:
    """The peer returned the representation. ``max_age`` is Cache-Control's, in seconds.

    ``location`` is absolute. ``elsewhere`` is the answer's Location if it can't be used (A5).
    """

    body: bytes
    location: str | None = None
    max_age: int | None = None
    elsewhere: str | None = None


@dataclass(frozen=True, slots=True)
class Processing:
    """Not ready: GET ``location`` (absolute), in ``retry_after`` seconds if the peer said so."""

    location: str
    retry_after: float | None = None


@dataclass(frozen=True, slots=True)
class Refused:
    """The peer answered a 4xx. ``type`` is the draft's error token, ``None`` if there was none."""

    status: int
    type: str | None
    detail: str
    retry_after: float | None = None

    @property
    def reason(self) -> str:
        """Status, error and detail in one line, as ``Unknown.reason`` has them."""
        status = f"HTTP {self.status} {self.type}" if self.type else f"HTTP {self.status}"
        return f"{status}: {self.detail}" if self.detail else status


@dataclass(frozen=True, slots=True)
class Unknown:
    """There was no usable answer. ``status`` is ``None`` if the transport failed."""

    reason: str
    status: int | None = None
    retry_after: float | None = None

    @property
    def busy(self) -> bool:
        """Whether the peer sheds load (429, 503): back-off need not grow (rule E1)."""
        return self.status in (429, 503)

    @property
    def unserved(self) -> bool:
        """Whether the peer serves nothing now: no connection, 429, or a 5xx."""
        return self.status is None or self.status == 429 or self.status >= 500

    @property
    def transient(self) -> bool:
        """Whether the same request may succeed later: neither it nor its URL is wrong."""
        return self.unserved or self.status in (408, 425)


Outcome = Ready | Processing | Refused | Unknown
