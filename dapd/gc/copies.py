"""Remove expired copies of the database, which upgrades and restores keep beside it.

Copies contain reports, so they may be kept no longer than those. Left out: backups in other places,
of which ``dapd backup`` removes the old ones.
"""

from __future__ import annotations

import structlog
import trio

from dapd.datastore import backup
from dapd.runtime.context import Context

_log = structlog.get_logger()


async def run_round(context: Context) -> None:
    """Remove every copy that has expired."""
    removed = await trio.to_thread.run_sync(
        backup.remove_expired_copies,
        context.config.datastore.path,
        context.instant().safe,
        await context.read(backup.shortest_age_of),
    )
    if removed:
        _log.info("expired_copies_removed", paths=[str(path) for path in removed])
