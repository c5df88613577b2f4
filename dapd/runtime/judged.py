"""Keep the parsed requests of the Helper's stored jobs in memory until the jobs are verified.

This only saves time: after a restart, or for requests beyond the limit here, the step reads and
checks the stored bytes again.
"""

from __future__ import annotations

from dapd.protocol.helper import InitRequest

_LIMIT = 64 << 20


class JudgedRequests:
    """Checked requests by their job's id, of at most ``limit`` bytes in all."""

    def __init__(self, limit: int = _LIMIT) -> None:
        self._limit = limit
        self._size = 0
        self._kept: dict[bytes, tuple[InitRequest, int]] = {}

    def keep(self, job_id: bytes, request: InitRequest, size: int) -> None:
        """Keep a request whose encoding has ``size`` bytes, if the limit allows it."""
        if job_id not in self._kept and self._size + size <= self._limit:
            self._kept[job_id] = (request, size)
            self._size += size

    def get(self, job_id: bytes) -> InitRequest | None:
        """Return the checked request, if it is kept."""
        kept = self._kept.get(job_id)
        return kept and kept[0]

    def drop(self, job_id: bytes) -> None:
        """Forget a job's request, if it is kept."""
        _, size = self._kept.pop(job_id, (None, 0))
        self._size -= size
