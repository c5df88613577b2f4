"""Notice within a second what commands write to a running daemon's database (rule E5)."""

from __future__ import annotations

import structlog
import trio

from dapd.errors import DatastoreError
from dapd.runtime.context import Context

_log = structlog.get_logger()
_EVERY = 1.0


async def run(context: Context) -> None:
    """Refresh tasks and keys once a second until the daemon drains."""
    while not context.draining.is_set():
        try:
            await look(context)
        except DatastoreError as error:
            _log.error(
                "changes_unread", error=str(error), remedy="dapd tries again; check the disk"
            )
        with trio.move_on_after(_EVERY):
            await context.draining.wait()


async def look(context: Context) -> None:
    """Read tasks and keys again if another process has changed the database."""
    await context.tasks.refresh()
    await context.keyrings.refresh()
