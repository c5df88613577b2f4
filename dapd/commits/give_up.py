"""The transaction that gives a Leader's unfinished job up: its reports are lost, and counted.

Rules D4, D6. They never go into a new job, because the Helper may have aggregated them.
"""

from __future__ import annotations

from typing import Literal

from dapd.datastore import chunks, collections, counters, leader_jobs
from dapd.datastore.engines import Tx
from dapd.protocol.states import LeaderJob


def give_up(
    tx: Tx,
    job_pk: int,
    state: Literal[LeaderJob.EXPIRED, LeaderJob.LOST],
    reason: str,
    now: int,
) -> int:
    """How many reports are lost with it; 0 if the job had ended already.

    Takes the job from whoever has it leased, whose commit then finds its lease lost.
    """
    given_up = leader_jobs.give_up(tx, job_pk, state, reason)  # D1
    if given_up is None:
        return 0
    task_pk, n, sends = given_up
    for chunk_pk, _ in chunks.sizes_of_job(tx, job_pk):
        chunks.decide(tx, chunk_pk)
    unsent = state is LeaderJob.EXPIRED and not sends
    counters.add(tx, task_pk, {"aggregate_report_dropped" if unsent else "aggregate_lost": n})
    collections.touch(tx, task_pk, now)
    return n
