"""The transaction in which an operator gives a job up (rules A6, D4).

An aggregation job's reports are counted as lost and never go into a new job, because the Helper may
have aggregated them. A collection job is deleted as if its Collector had done it: if the Helper may
have been asked for its share, the batch stays collected. One that dapd has given up loses what it
keeps for an identical query: its reports are counted, and the next query gets another batch.
"""

from __future__ import annotations

from dapd.commits.collections import delete_collection, discard_given_up
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
    """Give up a job, even one that is leased, and return the number of reports lost with it.

    Raises ``UsageError`` if the job has ended, or is a Helper's, which only the Leader may give up.
    """
    if job.kind == "collection" and (
        lost := discard_given_up(tx, job.pk, "contribution_uncollectable")
    ):
        return lost
    if job.state not in UNFINISHED:
        raise UsageError(f"job {job.name} has ended: {job.state}")
    if job.role == "helper":
        raise UsageError(
            f"only the Leader can give up job {job.name}: it would send it to this Helper again"
        )
    if job.kind == "aggregation":
        return give_up_job(tx, job.pk, LeaderJobState.LOST, _REASON, at.now)
    (sealed,) = (each for each in tasks.all_tasks(tx) if each.task_pk == job.task_pk)
    try:
        task = sealed.public()
    except UnreadableTask as error:
        raise UsageError(f"the job's task can't be read: {error}; {error.remedy}") from error
    delete_collection(tx, task, job.id, at)
    return 0
