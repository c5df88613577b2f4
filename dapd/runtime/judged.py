"""Requests of Helper jobs that this process has checked and stored, until it verifies them.

A stored job survives the process, its checked request does not: after a restart, or beyond the
limit here, the step reads and checks the stored bytes again.
"""

from __future__ import annotations

from dapd.protocol.helper import InitRequest

_LIMIT = 64 << 20


class JudgedRequests:
    """Checked requests by their job's id; ``limit`` bounds the bytes of the requests kept."""

    def __init__(self, limit: int = _LIMIT) -> None:
        self._limit = limit
        self._size = 0
        self._kept: dict[bytes, tuple[InitRequest, int]] = {}

    def keep(self, job_id: bytes, request: InitRequest, size: int) -> None:
        """Keep a request whose encoding has ``size`` bytes, if it fits below the limit."""
        if job_id not in self._kept and self._size + size <= self._limit:
            self._kept[job_id] = (request, size)
            self._size += size

    def get(self, job_id: bytes) -> InitRequest | None:
        """The checked request, if it is kept."""
        kept = self._kept.get(job_id)
        return kept and kept[0]

    def drop(self, job_id: bytes) -> None:
        """Forget the request of a job that has ended here."""
        _, size = self._kept.pop(job_id, (None, 0))
        self._size -= size
