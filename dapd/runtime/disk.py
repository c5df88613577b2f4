"""Free space: below a mark new data is refused, so that running work and GC can go on (rule E4)."""

from __future__ import annotations

import os
from pathlib import Path

import structlog
import trio

from dapd.advice.upkeep import MAKE_ROOM
from dapd.errors import Abort

_log = structlog.get_logger()

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
            self._note(found.f_bavail * found.f_frsize)
        return self._low

    def require_space(self) -> None:
        """Raise ``Abort`` with 503 if the disk is nearly full."""
        if self.low:
            raise Abort(
                None,
                "the disk is nearly full",
                status=503,
                headers={"Retry-After": _RETRY_AFTER},
            )

    def _note(self, free: int) -> None:
        was_low, self._low = self._low, free < self.min_free_bytes
        if self._low and not was_low:
            _log.error(
                "disk_low",
                free_bytes=free,
                refused_below_bytes=self.min_free_bytes,
                effect="uploads and new jobs are refused; what runs goes on",
                remedy=MAKE_ROOM,
            )
        elif was_low and not self._low:
            _log.info("disk_has_room", free_bytes=free, effect="uploads and new jobs are taken")
