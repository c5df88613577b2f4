"""Free space: below a mark new data is refused, so that running work and GC can go on (rule E4)."""

from __future__ import annotations

import os
from pathlib import Path

import trio

from dapd.errors import Abort

_LOOK_EVERY = 1.0
_RETRY_AFTER = "60"


class Disk:
    """The file system of ``path``, looked at once a second at most; the mark may be changed."""

    def __init__(self, path: Path, min_free_bytes: int) -> None:
        self._directory = path.parent
        self.min_free_bytes = min_free_bytes
        self._looked_at = -_LOOK_EVERY
        self._low = False

    @property
    def low(self) -> bool:
        if trio.current_time() - self._looked_at >= _LOOK_EVERY:
            self._looked_at = trio.current_time()
            found = os.statvfs(self._directory)
            self._low = found.f_bavail * found.f_frsize < self.min_free_bytes
        return self._low

    def require_space(self) -> None:
        """Raise ``Abort`` with 503 if the disk is nearly full."""
        if self.low:
            raise Abort(
                None,
                "the disk is nearly full; try again later",
                status=503,
                headers={"Retry-After": _RETRY_AFTER},
            )
