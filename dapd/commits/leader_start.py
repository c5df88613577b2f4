"""The transactions before a Leader's job is sent: its request is stored, each send is counted.

Section "Leader Initialization"; invariant I3, rules D4, D6.
"""

from __future__ import annotations

from dapd.commits.expire import expire_job
from dapd.datastore import leader_jobs
from dapd.datastore.engines import Tx
from dapd.datastore.leader_jobs import Job
from dapd.datastore.leases import Lease
from dapd.protocol.leader import Later
from dapd.protocol.states import LeaderJob


def store(tx: Tx, lease: Lease, request: bytes, leader_state: bytes, now: int, send: bool) -> None:
    """Store what will be sent, and the state. With ``send`` the job stays leased and its first send
    is counted; else it is released, due now. Raises ``LeaseLost``.
    """
    later = Later(LeaderJob.STORED, now, 0, 1 if send else 0)
    leader_jobs.move(tx, lease, LeaderJob.ASSIGNED, later, keep_lease=send)
    leader_jobs.store_bodies(tx, lease.pk, request, leader_state)


def count_send(tx: Tx, lease: Lease, expired_before: int, now: int) -> Job | None:
    """Count a send of the stored bytes before it happens, and load them; ``None`` if the job has
    expired instead. Raises ``LeaseLost``.
    """
    if leader_jobs.load(tx, lease).newest < expired_before:  # D6
        expire_job(tx, lease.pk, now)
        return None
    leader_jobs.count_send(tx, lease)
    return leader_jobs.load(tx, lease)


def load_to_poll(tx: Tx, lease: Lease, expired_before: int) -> Job | None:
    """A job to be polled; ``None`` if it has expired. Raises ``LeaseLost``."""
    job = leader_jobs.load(tx, lease)
    return job if job.newest >= expired_before else None  # D6


def wait(tx: Tx, lease: Lease, old: LeaderJob, later: Later) -> None:
    """Release the job until it goes on (I5). Raises ``LeaseLost``."""
    leader_jobs.move(tx, lease, old, later)
