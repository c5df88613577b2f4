"""The Leader's collection jobs.

``dapd.protocol.states`` lists their states; ``dapd.commits.collections`` moves them on;
``dapd.datastore.leases`` leases them.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field

from dapd.datastore import expiry
from dapd.datastore.expiry import Found
from dapd.datastore.leases import Lease
from dapd.datastore.sqlite import Row, Tx
from dapd.protocol.exchange import Later, Refusals, Standing
from dapd.protocol.packing import WaitingCollection
from dapd.protocol.states import CollectionState
from dapd.protocol.task import Instant, Mark

_COLUMNS = """collection_pk, id, task_pk, state, lo, hi, cut, sends, request, share_request,
leader_share, n, time_min, time_max, location, response, error, detail, served_at, refused_ms,
refused_at"""
_SELECT = f"SELECT {_COLUMNS} FROM collection_jobs"  # noqa: S608 - constants alone
# A result stays as long as its reports would, however long the job had to wait for them.
_EXPIRED = """state IN ('finished', 'failed', 'deleted') AND created_at < :expired_ms
  AND COALESCE(time_max, -1) < :expired_before"""
_Q_IDENTICAL = f"""
{_SELECT} WHERE task_pk = :task_pk AND request_hash = :request_hash AND NOT ({_EXPIRED})"""
_Q_BY_ID = f"{_SELECT} WHERE task_pk = :task_pk AND id = :id AND NOT ({_EXPIRED})"
_Q_BY_PK = f"{_SELECT} WHERE collection_pk = :pk"
_Q_INSERT = """
INSERT INTO collection_jobs (id, task_pk, state, lo, hi, run_at, request_hash, peer, request,
  created_at)
VALUES (:id, :task_pk, 'waiting', :lo, :hi, :now, :request_hash,
  (SELECT peer FROM tasks WHERE task_pk = :task_pk), :request, :safe)
RETURNING collection_pk"""
_Q_INSERT_FROZEN = """
INSERT INTO collection_jobs (id, task_pk, state, lo, hi, cut, run_at, sends, request_hash, peer,
  request, share_request, leader_share, n, time_min, time_max, created_at)
VALUES (:id, :task_pk, 'frozen', :lo, :hi, :cut, :now, :sends, :request_hash,
  (SELECT peer FROM tasks WHERE task_pk = :task_pk), :request, :share_request, :leader_share, :n,
  :time_min, :time_max, :safe)
RETURNING collection_pk"""
_Q_GIVEN_UP = """
SELECT collection_pk FROM collected AS r CROSS JOIN collection_jobs AS c USING (collection_pk)
WHERE r.task_pk = :task_pk AND r.state = 'given_up' AND request = :request
  AND leader_share IS NOT NULL AND time_max >= :expired_before
ORDER BY collected_pk LIMIT 1"""
_Q_FORGET_SHARE = """
UPDATE collection_jobs SET share_request = NULL, leader_share = NULL
WHERE collection_pk = :pk AND state IN ('failed', 'deleted') AND leader_share IS NOT NULL
  AND (:expired_before IS NULL OR time_max < :expired_before)
RETURNING task_pk, id, n, sends"""
_Q_END_IDENTITY = "UPDATE collection_jobs SET request_hash = NULL WHERE collection_pk = :pk"
_Q_EXPIRED_IDENTITY = f"""
UPDATE collection_jobs SET request_hash = NULL
WHERE task_pk = :task_pk AND request_hash = :request_hash AND {_EXPIRED}"""  # noqa: S608
_Q_STUCK = """
SELECT collection_pk, created_at, 0 FROM collection_jobs
WHERE task_pk = :task_pk AND time_max < :expired_before
  AND (state IN ('frozen', 'polling')
    OR state IN ('failed', 'deleted') AND leader_share IS NOT NULL)
  AND (created_at, collection_pk) > (:at, :after_pk)
ORDER BY created_at, collection_pk LIMIT :page"""
_Q_GIVE_UP = """
UPDATE collection_jobs SET state = 'failed', error = :error, detail = :detail, request_hash = NULL,
  share_request = NULL, leader_share = NULL, lease_token = NULL, lease_until = NULL
WHERE collection_pk = :pk AND state IN ('frozen', 'polling')
  AND (:expired_before IS NULL OR time_max < :expired_before)
RETURNING task_pk, id, n, sends"""
_Q_KEEP = "UPDATE collection_jobs SET created_at = max(created_at, :safe) WHERE collection_pk = :pk"
_Q_DROP = f"""
DELETE FROM collection_jobs WHERE collection_pk IN (SELECT collection_pk FROM collection_jobs
  WHERE task_pk = :task_pk AND {_EXPIRED} LIMIT :most)"""  # noqa: S608 - constants alone
_Q_DROP_ALL = """
DELETE FROM collection_jobs WHERE collection_pk IN (SELECT collection_pk FROM collection_jobs
  WHERE task_pk = :task_pk AND (lease_token IS NULL OR lease_until <= :now) LIMIT :most)"""
_Q_WAITING = """
SELECT lo, hi FROM collection_jobs WHERE task_pk = :task_pk AND state = 'waiting'
ORDER BY collection_pk"""
_Q_TOUCH = """
UPDATE collection_jobs SET run_at = :now
WHERE task_pk = :task_pk AND state = 'waiting' AND run_at > :now"""
_Q_COUNT_AS_SENT = """
UPDATE collection_jobs SET sends = 1
WHERE task_pk = :task_pk AND state IN ('frozen', 'polling') AND sends = 0"""
_Q_CLAIM = """
UPDATE collection_jobs SET lease_until = lease_until
WHERE collection_pk = :pk AND state = :state AND lease_token = :token"""
_Q_SET_CUT = "UPDATE collection_jobs SET cut = :cut WHERE collection_pk = :pk"
_Q_FREEZE = """
UPDATE collection_jobs SET state = 'frozen', lo = :lo, hi = :hi, share_request = :share_request,
  leader_share = :leader_share, n = :n, time_min = :time_min, time_max = :time_max, sends = 0,
  attempts = 0
WHERE collection_pk = :pk AND state = 'waiting' AND lease_token = :token"""
_Q_NOTE_SEND = """
UPDATE collection_jobs SET sends = sends + 1
WHERE collection_pk = :pk AND state = 'frozen' AND lease_token = :token"""
_Q_ASK_LATER = """
UPDATE collection_jobs SET state = CASE WHEN :location IS NULL THEN 'frozen' ELSE 'polling' END,
  location = :location, run_at = :run_at, attempts = :attempts, last_error = :error,
  refused_ms = :refused_ms, refused_at = :refused_at,
  lease_token = NULL, lease_until = NULL, crashes = 0
WHERE collection_pk = :pk AND state IN ('frozen', 'polling') AND lease_token = :token"""
_Q_END = """
UPDATE collection_jobs SET state = :state, response = :response, error = :error, detail = :detail,
  request_hash = CASE WHEN :state = 'finished' THEN request_hash END,
  share_request = CASE WHEN :keep_share THEN share_request END,
  leader_share = CASE WHEN :keep_share THEN leader_share END, lease_token = NULL, lease_until = NULL
WHERE collection_pk = :pk AND state IN ('waiting', 'frozen', 'polling') AND lease_token = :token"""
_Q_DELETE = """
UPDATE collection_jobs SET state = 'deleted', request_hash = NULL, response = NULL,
  share_request = CASE WHEN :keep_share THEN share_request END,
  leader_share = CASE WHEN :keep_share THEN leader_share END, lease_token = NULL, lease_until = NULL
WHERE collection_pk = :pk AND state <> 'deleted'"""
_Q_NOTE_SERVED = """
UPDATE collection_jobs SET served_at = :now WHERE collection_pk = :pk AND served_at IS NULL"""


@dataclass(frozen=True, slots=True)
class CollectionJob:
    """A collection job's row. ``leader_share`` is sealed; times are inclusive and count time
    precisions; ``served_at`` is in milliseconds.
    """

    pk: int
    id: bytes
    task_pk: int
    state: CollectionState
    lo: bytes
    hi: bytes
    cut: int | None
    sends: int
    request: bytes
    share_request: bytes | None
    leader_share: bytes | None = field(repr=False)
    n: int | None
    time_min: int | None
    time_max: int | None
    location: str | None
    response: bytes | None
    error: str | None
    detail: str | None
    served_at: int | None
    refused_ms: int
    refused_at: int | None

    @property
    def is_given_up(self) -> bool:
        """Whether the job has ended, and keeps its request and share for an identical one."""
        ended = self.state in (CollectionState.FAILED, CollectionState.DELETED)
        return ended and self.leader_share is not None

    def standing(self, lease: Lease) -> Standing:
        """Return the input of ``dapd.protocol.exchange``; the lease has the earlier attempts."""
        refusals = Refusals(self.refused_ms, self.refused_at)
        attempts = lease.due.attempts
        return Standing("collection", self.location, attempts, self.sends, refusals=refusals)


@dataclass(frozen=True, slots=True)
class FrozenBatch:
    """The columns that a freeze fills: range, AggregateShareReq, Leader's share (sealed), times."""

    lo: bytes
    hi: bytes
    share_request: bytes
    leader_share: bytes
    n: int
    time_min: int
    time_max: int


@dataclass(frozen=True, slots=True)
class Dropped:
    """A job without a result, whose share of ``n`` reports was dropped."""

    task_pk: int
    id: bytes
    n: int
    sends: int


def waiting(tx: Tx, task_pk: int) -> list[WaitingCollection]:
    """Return the ranges that a task's collections wait for, oldest first (rule C3)."""
    return [WaitingCollection(*row) for row in tx.all(_Q_WAITING, task_pk=task_pk)]


def touch(tx: Tx, task_pk: int, now: int) -> None:
    """Make a task's waiting collections due now (ms), since their reports have changed."""
    tx.execute(_Q_TOUCH, task_pk=task_pk, now=now)


def count_as_sent(tx: Tx, task_pk: int) -> None:
    """Count unsent requests as sent, because a restored file may have forgotten sends (A6, D4)."""
    tx.execute(_Q_COUNT_AS_SENT, task_pk=task_pk)


def request_hash(body: bytes) -> bytes:
    """Return the hash by which identical requests are found (rule A1)."""
    return hashlib.sha256(body).digest()


def identical(tx: Tx, task_pk: int, body: bytes, mark: Mark) -> CollectionJob | None:
    """Return the job that an identical request made (rule A1), unless it has expired (rule D6)."""
    row = tx.one(
        _Q_IDENTICAL,
        task_pk=task_pk,
        request_hash=request_hash(body),
        expired_before=mark.before,
        expired_ms=mark.ms,
    )
    return _job(row)


def by_id(tx: Tx, task_pk: int, job_id: bytes, mark: Mark) -> CollectionJob | None:
    """Return the job with this resource id, in any state, unless it has expired (rule D6)."""
    row = tx.one(
        _Q_BY_ID, task_pk=task_pk, id=job_id, expired_before=mark.before, expired_ms=mark.ms
    )
    return _job(row)


def by_pk(tx: Tx, pk: int) -> CollectionJob:
    """Return a leased job; its row exists, because leased jobs are never deleted."""
    job = _job(tx.one(_Q_BY_PK, pk=pk))
    assert job is not None
    return job


def insert(
    tx: Tx, task_pk: int, job_id: bytes, batch: tuple[bytes, bytes], body: bytes, at: Instant
) -> CollectionJob:
    """Insert a waiting job, due now; ``batch`` is (lo, hi), empty in the leader-selected mode."""
    row = tx.one(
        _Q_INSERT,
        id=job_id,
        task_pk=task_pk,
        lo=batch[0],
        hi=batch[1],
        now=at.now,
        safe=at.safe,
        request_hash=request_hash(body),
        request=body,
    )
    assert row is not None
    return by_pk(tx, row[0])


def given_up(tx: Tx, task_pk: int, body: bytes, mark: Mark) -> CollectionJob | None:
    """Return the first job of an identical request that was given up and has not expired."""
    row = tx.one(_Q_GIVEN_UP, task_pk=task_pk, request=body, expired_before=mark.before)
    return None if row is None else by_pk(tx, row[0])


def insert_frozen(
    tx: Tx, given_up: CollectionJob, job_id: bytes, leader_share: bytes, at: Instant
) -> CollectionJob:
    """Insert a job, due now, that goes on with the stored request of one that was given up.

    ``leader_share`` is the share, sealed for the new job.
    """
    row = tx.one(
        _Q_INSERT_FROZEN,
        id=job_id,
        task_pk=given_up.task_pk,
        lo=given_up.lo,
        hi=given_up.hi,
        cut=given_up.cut,
        now=at.now,
        sends=given_up.sends,
        request_hash=request_hash(given_up.request),
        request=given_up.request,
        share_request=given_up.share_request,
        leader_share=leader_share,
        n=given_up.n,
        time_min=given_up.time_min,
        time_max=given_up.time_max,
        safe=at.safe,
    )
    assert row is not None
    return by_pk(tx, row[0])


def end_identity(tx: Tx, pk: int) -> None:
    """End a job's identity, so that the next identical request makes a new job (rule A8)."""
    tx.execute(_Q_END_IDENTITY, pk=pk)


def end_expired_identity(tx: Tx, task_pk: int, body: bytes, mark: Mark) -> None:
    """End the identity of an expired job, so that an identical request can make a new one."""
    tx.execute(
        _Q_EXPIRED_IDENTITY,
        task_pk=task_pk,
        request_hash=request_hash(body),
        expired_before=mark.before,
        expired_ms=mark.ms,
    )


def expiring(tx: Tx, task_pk: int, expired_before: int, after: Found) -> list[Found]:
    """Find jobs that wait for the Helper's share of reports below the watermark, or were given up
    and keep their own (rule D6).
    """
    return expiry.page(tx, _Q_STUCK, after, task_pk=task_pk, expired_before=expired_before)


def give_up(
    tx: Tx, pk: int, error: str, detail: str, expired_before: int | None = None
) -> Dropped | None:
    """Fail a job that waits for the Helper's share, leased or not. Return ``None`` if it has ended
    or, given ``expired_before``, its reports are not below that.
    """
    row = tx.one(_Q_GIVE_UP, pk=pk, expired_before=expired_before, error=error, detail=detail)
    return None if row is None else Dropped(*row)


def forget_share(tx: Tx, pk: int, expired_before: int | None = None) -> Dropped | None:
    """Forget the request and the share that a job keeps which was given up. Return ``None`` if it
    keeps none or, given ``expired_before``, its reports are not below that.
    """
    row = tx.one(_Q_FORGET_SHARE, pk=pk, expired_before=expired_before)
    return None if row is None else Dropped(*row)


def keep(tx: Tx, pk: int, safe: int) -> None:
    """Let a failed job expire as if it had been made now, by the safe clock (ms), so that the
    Collector can still learn why it failed.
    """
    tx.execute(_Q_KEEP, pk=pk, safe=safe)


def drop(tx: Tx, task_pk: int, mark: Mark, most: int) -> int:
    """Delete up to ``most`` ended jobs that have expired; return their number."""
    return tx.execute(
        _Q_DROP, task_pk=task_pk, expired_before=mark.before, expired_ms=mark.ms, most=most
    )


def drop_all(tx: Tx, task_pk: int, now: int, most: int) -> int:
    """Delete up to ``most`` jobs of a deleted task that are not leased (at ``now``, ms)."""
    return tx.execute(_Q_DROP_ALL, task_pk=task_pk, now=now, most=most)


def claim(tx: Tx, lease: Lease, state: CollectionState) -> bool:
    """Return whether the lease still holds and the job is in this state (rule D1)."""
    return bool(tx.execute(_Q_CLAIM, pk=lease.pk, state=state, token=lease.token))


def set_cut(tx: Tx, pk: int, cut: int) -> None:
    """Fix the cut: from now on only chunks up to it are assigned (rule C3)."""
    tx.execute(_Q_SET_CUT, pk=pk, cut=cut)


def freeze(tx: Tx, lease: Lease, batch: FrozenBatch) -> bool:
    """Claim a waiting job and store the frozen batch; the job stays leased."""
    return bool(
        tx.execute(
            _Q_FREEZE,
            pk=lease.pk,
            token=lease.token,
            lo=batch.lo,
            hi=batch.hi,
            share_request=batch.share_request,
            leader_share=batch.leader_share,
            n=batch.n,
            time_min=batch.time_min,
            time_max=batch.time_max,
        )
    )


def note_send(tx: Tx, lease: Lease) -> bool:
    """Count a send before it happens (rule D4); return whether the lease still holds."""
    return bool(tx.execute(_Q_NOTE_SEND, pk=lease.pk, token=lease.token))


def ask_later(tx: Tx, lease: Lease, later: Later) -> bool:
    """Release the job until its next exchange; return whether the lease still held."""
    return bool(
        tx.execute(
            _Q_ASK_LATER,
            pk=lease.pk,
            token=lease.token,
            location=later.location,
            run_at=later.run_at,
            attempts=later.attempts,
            error=later.error,
            refused_ms=later.refusals.ms,
            refused_at=later.refusals.last,
        )
    )


def finish(tx: Tx, lease: Lease, response: bytes) -> bool:
    """Claim the job, store its result, and delete what was needed to compute it."""
    return _end(tx, lease, CollectionState.FINISHED, response=response)


def fail(tx: Tx, lease: Lease, error: str | None, detail: str, *, keep_share: bool = False) -> bool:
    """Claim the job, end it with an error, and end its identity (rule A1).

    ``keep_share`` keeps its request and share, for an identical request to go on with.
    """
    failed = CollectionState.FAILED
    return _end(tx, lease, failed, failure=(error, detail), keep_share=keep_share)


def delete(tx: Tx, pk: int, *, keep_share: bool = False) -> None:
    """Turn the job into a tombstone, even if it is leased; ``keep_share`` as in ``fail``."""
    tx.execute(_Q_DELETE, pk=pk, keep_share=keep_share)


def note_served(tx: Tx, pk: int, now: int) -> None:
    """Note that the result is about to be served, unless it was before (rule A8)."""
    tx.execute(_Q_NOTE_SERVED, pk=pk, now=now)


def _end(
    tx: Tx,
    lease: Lease,
    state: CollectionState,
    *,
    response: bytes | None = None,
    failure: tuple[str | None, str | None] = (None, None),
    keep_share: bool = False,
) -> bool:
    error, detail = failure
    return bool(
        tx.execute(
            _Q_END,
            pk=lease.pk,
            token=lease.token,
            state=state,
            response=response,
            error=error,
            detail=detail,
            keep_share=keep_share,
        )
    )


def _job(row: Row | None) -> CollectionJob | None:
    if row is None:
        return None
    pk, job_id, task_pk, state, *rest = row
    return CollectionJob(pk, job_id, task_pk, CollectionState(state), *rest)
