"""Refuse new data while the disk is nearly full, so that running work and GC can go on (E4)."""

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
    """The free space of the database's file system, measured at most once a second."""

    def __init__(self, path: Path, min_free_bytes: int) -> None:
        self._directory = path.parent
        self.min_free_bytes = min_free_bytes
        self._looked_at = -_LOOK_EVERY
        self._low = False

    @property
    def low(self) -> bool:
        """Whether less than ``min_free_bytes`` is free."""
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
                effect="dapd refuses uploads and new jobs; jobs that it has go on",
                remedy=MAKE_ROOM,
            )
        elif was_low and not self._low:
            _log.info(
                "disk_has_room", free_bytes=free, effect="dapd accepts uploads and new jobs again"
            )
