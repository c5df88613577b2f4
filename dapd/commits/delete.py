"""The Leader deletes what it needs no more: an aggregation job, an aggregate share (rule A6).

Sections "Aggregation Job Abandonment and Deletion" and "Aggregate Share Deletion". Neither takes
away what replay and double collection checks need: the ids stay admitted, the contributions stay
in their buckets, and the batch stays collected.
"""

from __future__ import annotations

from dapd.datastore import helper_jobs, share_jobs
from dapd.datastore.engines import Tx


def delete_aggregation_job(tx: Tx, task_pk: int, job_id: bytes) -> bool:
    """Leave a tombstone; whether there was a job.

    An unfinished one admits nothing: a commit under way finds nothing to claim any more.
    """
    return helper_jobs.delete(tx, task_pk, job_id)


def delete_aggregate_share(tx: Tx, task_pk: int, share_id: bytes) -> bool:
    """Forget the response and its identity; whether there was one."""
    return share_jobs.delete(tx, task_pk, share_id)
