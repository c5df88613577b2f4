"""The Leader's aggregation jobs and their bodies. Each move claims the job by its lease (rule D1).

``dapd.protocol.states`` lists the moves; ``dapd.datastore.leases`` leases the jobs.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from dapd.datastore import expiry, outstanding
from dapd.datastore.expiry import Found
from dapd.datastore.leases import Lease
from dapd.datastore.sqlite import Tx
from dapd.protocol.exchange import Later, Refusals, Standing
from dapd.protocol.states import LeaderJobState, require_move

_Q_INSERT = """
INSERT INTO aggregation_jobs (id, task_pk, role, state, n, bucket, run_at, attempts, peer, newest,
  created_at)
VALUES (:id, :task_pk, 'leader', 'assigned', :n, :bucket, :run_at, :attempts,
  (SELECT peer FROM tasks WHERE task_pk = :task_pk), 0, :now)
RETURNING job_pk"""
_Q_NOTE_NEWEST = """
UPDATE aggregation_jobs
SET newest = (SELECT max(time_max) FROM report_chunks WHERE report_chunks.job_pk = :job_pk)
WHERE job_pk = :job_pk"""
_Q_LOAD = """
SELECT job_pk, id, task_pk, state, n, bucket, newest, attempts, sends, refused_ms, refused_at,
  location, CASE WHEN state = 'stored' THEN request END, leader_state
FROM aggregation_jobs LEFT JOIN job_bodies USING (job_pk)
WHERE job_pk = :job_pk AND lease_token = :token"""
_Q_MOVE = """
UPDATE aggregation_jobs SET state = :new, sends = :sends, location = :location, run_at = :run_at,
  attempts = :attempts, last_error = :error, crashes = 0, refused_ms = :refused_ms,
  refused_at = :refused_at,
  lease_token = CASE WHEN :keep_lease THEN lease_token END,
  lease_until = CASE WHEN :keep_lease THEN lease_until END
WHERE job_pk = :job_pk AND state = :old AND lease_token = :token"""
_Q_GIVE_UP = """
UPDATE aggregation_jobs SET state = :state, last_error = :error, lease_token = NULL,
  lease_until = NULL
WHERE job_pk = :job_pk AND role = 'leader' AND state IN ('assigned', 'stored', 'polling')
RETURNING task_pk, n, sends, bucket"""
_Q_LOCATION = "SELECT location FROM aggregation_jobs WHERE job_pk = :job_pk AND role = 'leader'"
_Q_UNFINISHED = """
SELECT job_pk FROM aggregation_jobs WHERE task_pk = :task_pk AND role = 'leader'
  AND state IN ('assigned', 'stored', 'polling', 'received')"""
_Q_EXPIRING = """
SELECT job_pk, newest, n FROM aggregation_jobs
WHERE task_pk = :task_pk AND newest < :expired_before AND (newest, job_pk) > (:at, :after_pk)
  AND state IN ('assigned', 'stored', 'polling') AND role = 'leader'
ORDER BY newest, job_pk LIMIT :page"""
_Q_PAST = """
SELECT job_pk, newest, 0 FROM aggregation_jobs
WHERE task_pk = :task_pk AND newest < :expired_before AND (newest, job_pk) > (:at, :after_pk)
  AND state IN ('finished', 'abandoned', 'expired', 'lost') AND role = 'leader'
ORDER BY newest, job_pk LIMIT :page"""
_Q_DROP = """
DELETE FROM aggregation_jobs WHERE job_pk = :job_pk AND role = 'leader'
  AND state IN ('finished', 'abandoned', 'expired', 'lost')
  AND NOT EXISTS (SELECT 1 FROM report_chunks AS c WHERE c.job_pk = :job_pk)
RETURNING bucket"""
_Q_COUNT_SEND = """
UPDATE aggregation_jobs SET sends = sends + 1
WHERE job_pk = :job_pk AND state = 'stored' AND lease_token = :token RETURNING sends"""
_Q_STORE_BODIES = """
INSERT INTO job_bodies (job_pk, request, leader_state) VALUES (:job_pk, :request, :leader_state)"""
_Q_DELETE_BODIES = "DELETE FROM job_bodies WHERE job_pk = :job_pk"


class LeaseLost(Exception):
    """The job was taken from this lease, or its state has changed, so nothing may be committed."""


@dataclass(frozen=True, slots=True)
class Job:
    """A row and its bodies. ``request`` is loaded only for sending; ``leader_state`` is sealed.

    ``batch_id`` is empty in the time-interval mode; ``newest`` is the time of the newest report.
    """

    job_pk: int
    id: bytes
    task_pk: int
    state: LeaderJobState
    n: int
    batch_id: bytes
    newest: int
    attempts: int
    sends: int
    refused_ms: int
    refused_at: int | None
    location: str | None
    request: bytes | None = field(repr=False)
    leader_state: bytes | None = field(repr=False)

    def standing(self, lease: Lease, *, accepted: bool) -> Standing:
        """Return the input of ``dapd.protocol.exchange``; the lease has the earlier attempts."""
        refusals = Refusals(self.refused_ms, self.refused_at)
        attempts = lease.due.attempts
        return Standing("aggregation", self.location, attempts, self.sends, accepted, refusals)


@dataclass(frozen=True, slots=True)
class NewJob:
    """A job to insert; ``run_at`` and ``now`` are in ms."""

    id: bytes
    task_pk: int
    n: int
    batch_id: bytes
    run_at: int
    now: int
    attempts: int = 0


def insert(tx: Tx, job: NewJob) -> int:
    """Insert a job in state ``assigned`` and return its key.

    The caller then assigns its chunks, and calls ``note_newest``.
    """
    row = tx.one(
        _Q_INSERT,
        id=job.id,
        task_pk=job.task_pk,
        n=job.n,
        bucket=job.batch_id,
        run_at=job.run_at,
        attempts=job.attempts,
        now=job.now,
    )
    assert row is not None
    return int(row[0])


def note_newest(tx: Tx, job_pk: int) -> None:
    """Note the time of the newest report, which says when the job expires (rule D6)."""
    tx.execute(_Q_NOTE_NEWEST, job_pk=job_pk)


def load(tx: Tx, lease: Lease) -> Job:
    """Load a leased job. Raises ``LeaseLost`` if it was given up or deleted meanwhile."""
    row = tx.one(_Q_LOAD, job_pk=lease.pk, token=lease.token)
    if row is None:
        raise LeaseLost(f"job {lease.pk} is not under this lease")
    job_pk, job_id, task_pk, state, *rest = row
    return Job(job_pk, job_id, task_pk, LeaderJobState(state), *rest)


def move(
    tx: Tx,
    lease: Lease,
    states: tuple[LeaderJobState, LeaderJobState],
    later: Later,
    *,
    keep_lease: bool = False,
) -> None:
    """Claim the job in the first of ``states`` and move it to the second, with the next exchange in
    ``later``. Raises ``LeaseLost``.
    """
    old, new = states
    require_move(old, new)
    claimed = tx.execute(
        _Q_MOVE,
        job_pk=lease.pk,
        token=lease.token,
        old=old,
        new=new,
        sends=later.sends,
        location=later.location,
        run_at=later.run_at,
        attempts=later.attempts,
        error=later.error,
        refused_ms=later.refusals.ms,
        refused_at=later.refusals.last,
        keep_lease=keep_lease,
    )
    if claimed != 1:  # D1
        raise LeaseLost(f"job {lease.pk} is not {old} under this lease")


def end(tx: Tx, lease: Lease, job: Job, state: LeaderJobState, error: str | None = None) -> None:
    """Claim the job, end it and delete its bodies. Raises ``LeaseLost``."""
    last = Later(job.location, 0, job.attempts, job.sends, error)
    move(tx, lease, (job.state, state), last)
    outstanding.look_again(tx, job.task_pk, job.batch_id)
    tx.execute(_Q_DELETE_BODIES, job_pk=lease.pk)


def give_up(
    tx: Tx, job_pk: int, state: LeaderJobState, error: str
) -> tuple[int, int, int, bytes] | None:
    """End an unfinished job, leased or not; return (task_pk, n, sends, batch id), or ``None``."""
    row = tx.one(_Q_GIVE_UP, job_pk=job_pk, state=state, error=error)
    if row is None:
        return None
    task_pk, n, sends, batch_id = row
    outstanding.look_again(tx, task_pk, batch_id)
    tx.execute(_Q_DELETE_BODIES, job_pk=job_pk)
    return task_pk, n, sends, batch_id


def location(tx: Tx, job_pk: int) -> str | None:
    """Return where the job is at the Helper, if that is known."""
    row = tx.one(_Q_LOCATION, job_pk=job_pk)
    return None if row is None else row[0]


def unfinished(tx: Tx, task_pk: int) -> list[int]:
    """Return the keys of a Leader's unfinished jobs."""
    return [row[0] for row in tx.all(_Q_UNFINISHED, task_pk=task_pk)]


def expiring(tx: Tx, task_pk: int, expired_before: int, after: Found) -> list[Found]:
    """Find unfinished jobs whose newest report is below the watermark, oldest first (rule D6)."""
    return expiry.page(tx, _Q_EXPIRING, after, task_pk=task_pk, expired_before=expired_before)


def past(tx: Tx, task_pk: int, expired_before: int, after: Found) -> list[Found]:
    """Find ended jobs whose newest report is below the watermark, oldest first (rule D6)."""
    return expiry.page(tx, _Q_PAST, after, task_pk=task_pk, expired_before=expired_before)


def drop(tx: Tx, job_pk: int) -> bytes | None:
    """Delete an ended job and return its batch id; ``None`` if it still has chunks."""
    row = tx.one(_Q_DROP, job_pk=job_pk)
    return None if row is None else row[0]


def store_bodies(tx: Tx, job_pk: int, request: bytes, leader_state: bytes) -> None:
    """Keep the exact request and the sealed state until the job ends (I3)."""
    tx.execute(_Q_STORE_BODIES, job_pk=job_pk, request=request, leader_state=leader_state)


def count_send(tx: Tx, lease: Lease) -> int:
    """Count a send before it happens (D4); return the number of sends. Raises ``LeaseLost``."""
    row = tx.one(_Q_COUNT_SEND, job_pk=lease.pk, token=lease.token)
    if row is None:
        raise LeaseLost(f"job {lease.pk} is not stored under this lease")
    return int(row[0])
