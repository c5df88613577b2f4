"""Refuse reports that never expire once the replay index is as large as allowed (rule E4).

The ids of a task with an expiry age leave the index in time; those of the others stay in memory
until an operator sets an age.
"""

from __future__ import annotations

import structlog

from dapd.errors import Abort
from dapd.protocol.task import Task
from dapd.runtime.context import Context

_log = structlog.get_logger()
_ALARM_EVERY = 60.0


def require_replay_room(context: Context, task: Task) -> None:
    """Raise ``Abort`` with 503 if the task's reports never expire and the index is full.

    Log an alarm for that at most once a minute.
    """
    limit = context.config.reports.max_replay_ids
    if task.settings.report_expiry_age is not None or len(context.datastore.replay) < limit:
        return
    if context.seldom.due("replay_index_full", _ALARM_EVERY):
        _log.error(
            "replay_index_full",
            ids=len(context.datastore.replay),
            task_id=task.id_text,
            remedy="let the reports expire: `dapd task set --report-expiry-age`; or, if there is "
            "memory, raise [reports] max_replay_ids",
        )
    raise Abort(
        None,
        "this Aggregator can't store more reports of this task at present",
        status=503,
        headers={"Retry-After": "3600"},
    )
