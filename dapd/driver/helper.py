"""The Helper's step: a job that was received is verified and committed.

Section "Helper Initialization". One state, no exchange; ``dapd.runtime.helper`` does the work.
"""

from __future__ import annotations

import structlog

from dapd.datastore import helper_jobs
from dapd.driver.desk import Desk
from dapd.errors import Abort
from dapd.protocol.helper import judge_init
from dapd.runtime import helper
from dapd.runtime.context import Context

_log = structlog.get_logger()


async def step(context: Context, desk: Desk) -> None:
    """Load, compute, commit, holding a slot (rule E1); the commit ends the lease."""
    task, lease = desk.task, desk.lease
    async with desk.slots:
        loaded = await context.read(helper_jobs.leased_request, task.task_pk, lease.pk, lease.token)
        if loaded is None:
            return  # deleted, or another's
        key, body = loaded
        request = await context.compute(judge_init, task, body)
        try:
            await helper.verify_and_commit(context, task, key, request, stored=True)
        except Abort as abort:
            # A6: the Leader deleted the job while it was verified; nothing was admitted.
            _log.info("aggregation_job_gone", detail=abort.detail)
