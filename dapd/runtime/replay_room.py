"""The replay index has a cap, for the tasks whose reports never expire (rule E4).

What a task with an expiry age adds goes again by itself; what the others add stays in memory for
ever, until an operator sets an age.
"""

from __future__ import annotations

import structlog

from dapd.errors import Abort
from dapd.protocol.task import Task
from dapd.runtime.context import Context

_log = structlog.get_logger()
_ALARM_EVERY = 60.0


def require_replay_room(context: Context, task: Task) -> None:
    """Raise ``Abort`` with 503, and an alarm once a minute, if the index takes no more of it."""
    limit = context.config.reports.max_replay_ids
    if task.settings.report_expiry_age is not None or len(context.datastore.replay) < limit:
        return
    if context.seldom.due("replay_index_full", _ALARM_EVERY):
        _log.error(
            "replay_index_full",
            ids=len(context.datastore.replay),
            task_id=task.id_text,
            remedy="set an age with `dapd task set --report-expiry-age`, or raise "
            "[reports] max_replay_ids if there is memory",
        )
    raise Abort(
        None,
        "this Aggregator can remember no more reports of this task",
        status=503,
        headers={"Retry-After": "3600"},
    )
