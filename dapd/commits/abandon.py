"""The transaction in which an operator gives a job up (rules A6, D4).

An aggregation job's reports are lost and counted, and never go into a new job: the Helper may have
aggregated them. A collection job goes as if its Collector had deleted it: a batch whose share the
Helper may have been asked for stays collected.
"""

from __future__ import annotations

from dapd.commits.collections import delete_collection
from dapd.commits.leader_jobs import give_up_job
from dapd.datastore import tasks
from dapd.datastore.jobs import JobRow
from dapd.datastore.sqlite import Tx
from dapd.datastore.tasks import UnreadableTask
from dapd.errors import UsageError
from dapd.protocol.states import UNFINISHED, LeaderJobState
from dapd.protocol.task import Instant

_REASON = "given up by an operator"


def abandon(tx: Tx, job: JobRow, at: Instant) -> int:
    """How many reports are lost with it. Takes the job from whoever has it leased.

    Raises ``UsageError``: it has ended, or is a Helper's, of which its Leader decides.
    """
    if job.state not in UNFINISHED:
        raise UsageError(f"job {job.name} has ended: {job.state}")
    if job.role == "helper":
        raise UsageError(
            f"job {job.name} is the Leader's to give up: this Helper would only be sent it again"
        )
    if job.kind == "aggregation":
        return give_up_job(tx, job.pk, LeaderJobState.LOST, _REASON, at.now)
    (sealed,) = (each for each in tasks.all_tasks(tx) if each.task_pk == job.task_pk)
    try:
        task = sealed.public()
    except UnreadableTask as error:
        raise UsageError(f"its task can't be read: {error}; {error.remedy}") from error
    delete_collection(tx, task, job.id, at)
    return 0
