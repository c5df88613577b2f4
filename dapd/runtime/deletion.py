"""Delete an aggregation job at the Helper, which may then clean up (section "Aggregation Job
Abandonment and Deletion", rule A7).
"""

from __future__ import annotations

import structlog

from dapd.protocol.outcome import Ready
from dapd.runtime.context import Context

_log = structlog.get_logger()


async def delete_job(context: Context, location: str, token: str) -> bool:
    """Send a DELETE once, and log a failure; the Helper then keeps the job until it expires.

    Return whether the Helper has deleted it.
    """
    outcome = await context.http.delete(location, token)
    if isinstance(outcome, Ready):
        return True
    _log.warning("delete_failed", status=outcome.status, error=outcome.reason)
    return False
