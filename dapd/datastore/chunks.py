"""Report chunks: a Leader's reports, as one upload transaction accepted them for one bucket.

A chunk is ``waiting`` for a job, ``assigned`` to one, or ``decided``: its reports are aggregated or
rejected, its rows are deleted, and its ids stay, to recognize replays. The parts of a cut chunk
keep its ``seq``, the order of acceptance (rules C3, D5). ``dapd.protocol.packing`` decides which
chunks become a job.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from dapd.datastore import expiry
from dapd.datastore.expiry import Found
from dapd.datastore.sqlite import Tx
from dapd.protocol.collect import Backlog
from dapd.protocol.packing import Limits, Waiting
from dapd.protocol.states import ChunkState
from dapd.reports import Chunk, cut_chunk

_Q_INSERT = """
INSERT INTO report_chunks
  (task_pk, seq, bucket, n, time_min, time_max, ids, state, job_pk, run_at, attempts)
VALUES (:task_pk, :seq, :bucket, :n, :time_min, :time_max, :ids, :state, :job_pk, :run_at,
  :attempts)
RETURNING chunk_pk"""
_Q_INSERT_ROWS = (
    "INSERT INTO chunk_rows (chunk_pk, lengths, rows) VALUES (:chunk_pk, :lengths, :rows)"
)
# A leader-selected job is also due if it fills its batch, see ``outstanding_batches.room``. If all
# open batches are full, the caller must compare with the size of a new one.
_Q_READY = """
WITH waiting (task_pk, n, oldest, selected) AS (
  SELECT task_pk, sum(n), min(run_at), max(bucket) = x'' FROM report_chunks
  WHERE state = 'waiting' AND run_at <= :now GROUP BY task_pk),
rooms (task_pk, room) AS (
  SELECT task_pk, min(COALESCE(room, 0)) FROM outstanding_batches INDEXED BY outstanding_roomy
  WHERE collection_pk IS NULL AND room IS NOT 0 GROUP BY task_pk),
judged (task_pk, n, enough, selected, room) AS (
  SELECT task_pk, n, oldest <= :now - :max_wait OR n >= :min_size OR n >= room
    OR task_pk IN (SELECT task_pk FROM collection_jobs INDEXED BY collection_jobs_waiting
      WHERE state = 'waiting'), selected, room
  FROM waiting LEFT JOIN rooms USING (task_pk))
SELECT task_pk, n, COALESCE(enough, 0) FROM judged WHERE enough OR (selected AND room IS NULL)"""
_Q_NEXT = "SELECT min(run_at) FROM report_chunks WHERE state = 'waiting' AND run_at > :now"
_Q_BEYOND = "SELECT 1 FROM report_chunks WHERE state = 'waiting' AND run_at > :latest LIMIT 1"
_Q_RECALL = """
UPDATE report_chunks SET run_at = :now WHERE state = 'waiting' AND run_at > :latest"""
# Order and plus signs make SQLite use the index of waiting chunks for the next three queries, not
# one that also contains the decided chunks, of which there are far more.
# The state of the range that a chunk's bucket is in; ranges of a task never overlap.
_SHUT = """(SELECT CASE WHEN hi > chunk.bucket THEN collected.state END FROM collected
    WHERE collected.task_pk = chunk.task_pk AND lo <= chunk.bucket ORDER BY lo DESC LIMIT 1)"""
# Whether a collection wants the chunk, but has a fixed cut before it (rule C3).
_HELD_BACK = """EXISTS (SELECT 1 FROM collection_jobs AS asked
    WHERE asked.task_pk = chunk.task_pk AND asked.state = 'waiting' AND chunk.seq > asked.cut
      AND (asked.hi = x'' OR (asked.lo <= chunk.bucket AND chunk.bucket < asked.hi)))"""
_Q_COLLECTED = f"""
SELECT chunk_pk, n FROM report_chunks AS chunk WHERE task_pk = :task_pk AND state = 'waiting'
  AND {_SHUT} IN ('collected', 'given_up') ORDER BY seq LIMIT :limit"""  # noqa: S608 - constants alone
_Q_EXPIRED = """
SELECT chunk_pk, n FROM report_chunks
WHERE task_pk = :task_pk AND state = 'waiting' AND +time_max < :expired_before
ORDER BY seq LIMIT :limit"""
_Q_ASSIGNABLE = f"""
SELECT chunk_pk, seq, bucket, n, run_at FROM report_chunks AS chunk
WHERE task_pk = :task_pk AND state = 'waiting' AND run_at <= :now
  AND +time_max >= :expired_before
  AND (+time_max <= :too_early_after OR time_min <= :too_early_after)
  AND {_SHUT} IS NULL AND NOT {_HELD_BACK}
ORDER BY seq, chunk_pk LIMIT :limit"""  # noqa: S608 - constants alone
_Q_ASSIGN = """
UPDATE report_chunks SET state = 'assigned', job_pk = :job_pk, bucket = :bucket
WHERE chunk_pk = :chunk_pk AND state = 'waiting'"""
_Q_HAND_OVER = """
UPDATE report_chunks SET state = :state, job_pk = :job_pk, bucket = :bucket, run_at = :run_at,
  attempts = :attempts WHERE chunk_pk = :chunk_pk"""
_Q_SHRINK = """
UPDATE report_chunks SET n = :n, time_min = :time_min, time_max = :time_max, ids = :ids
WHERE chunk_pk = :chunk_pk"""
_Q_DECIDE = "UPDATE report_chunks SET state = 'decided' WHERE chunk_pk = :chunk_pk"
_Q_DELETE_ROWS = "DELETE FROM chunk_rows WHERE chunk_pk = :chunk_pk"
_Q_DELETE = "DELETE FROM report_chunks WHERE chunk_pk = :chunk_pk"
_Q_PAST = """
SELECT chunk_pk, time_max,
  16 * n + COALESCE((SELECT length(rows) FROM chunk_rows AS r WHERE r.chunk_pk = c.chunk_pk), 0)
FROM report_chunks AS c
WHERE task_pk = :task_pk AND time_max < :expired_before AND (time_max, chunk_pk) > (:at, :after_pk)
  AND state <> 'assigned'
ORDER BY time_max, chunk_pk LIMIT :page"""
_Q_DROP = """
DELETE FROM report_chunks
WHERE chunk_pk = :chunk_pk AND time_max < :expired_before AND state <> 'assigned'
RETURNING state, n, ids"""
_Q_OF_JOB = """
SELECT chunk_pk, task_pk, seq, bucket, n, time_min, time_max, run_at, attempts, ids, lengths, rows
FROM report_chunks LEFT JOIN chunk_rows USING (chunk_pk)
WHERE job_pk = :job_pk AND state = 'assigned' ORDER BY chunk_pk"""
_Q_SIZES = """
SELECT chunk_pk, n FROM report_chunks WHERE job_pk = :job_pk AND state = 'assigned'
ORDER BY chunk_pk"""
_Q_ONE = """
SELECT chunk_pk, task_pk, seq, bucket, n, time_min, time_max, run_at, attempts, ids, lengths, rows
FROM report_chunks LEFT JOIN chunk_rows USING (chunk_pk) WHERE chunk_pk = :chunk_pk"""
_Q_BACKLOG = """
SELECT COALESCE(sum(CASE WHEN state = 'waiting' THEN n END), 0),
  COALESCE(sum(CASE WHEN state = 'assigned' THEN n END), 0),
  COALESCE(sum(CASE WHEN :cut IS NULL OR seq <= :cut THEN n END), 0),
  COALESCE(max(seq), 0)
FROM report_chunks WHERE task_pk = :task_pk AND state IN ('waiting', 'assigned')"""
_Q_TOO_EARLY = """
SELECT COALESCE(sum(n), 0), COALESCE(sum(CASE WHEN :cut IS NULL OR seq <= :cut THEN n END), 0)
FROM report_chunks
WHERE task_pk = :task_pk AND time_max > :too_early_after AND time_min > :too_early_after
  AND +state = 'waiting'"""
_RANGE = " AND bucket >= :lo AND bucket < :hi"
_Q_BACKLOG_OF_RANGE = _Q_BACKLOG + _RANGE
_Q_TOO_EARLY_OF_RANGE = _Q_TOO_EARLY + _RANGE


@dataclass(frozen=True, slots=True)
class StoredChunk:
    """One chunk with its rows. ``run_at`` is in ms; times count the task's precision."""

    chunk_pk: int
    task_pk: int
    seq: int
    bucket: bytes
    n: int
    time_min: int
    time_max: int
    run_at: int
    attempts: int
    ids: bytes
    lengths: bytes
    rows: bytes


@dataclass(frozen=True, slots=True)
class Place:
    """The columns of a chunk other than its reports."""

    task_pk: int
    seq: int
    bucket: bytes
    run_at: int
    attempts: int = 0
    job_pk: int | None = None

    @property
    def state(self) -> ChunkState:
        """``ASSIGNED`` if there is a job, else ``WAITING``."""
        return ChunkState.WAITING if self.job_pk is None else ChunkState.ASSIGNED


def insert(tx: Tx, place: Place, chunk: Chunk) -> int:
    """Store reports with their rows: assigned if ``place`` names a job, else waiting."""
    n, time_min, time_max, ids, lengths, rows = chunk
    row = tx.one(
        _Q_INSERT,
        task_pk=place.task_pk,
        seq=place.seq,
        bucket=place.bucket,
        n=n,
        time_min=time_min,
        time_max=time_max,
        ids=ids,
        state=place.state,
        job_pk=place.job_pk,
        run_at=place.run_at,
        attempts=place.attempts,
    )
    assert row is not None
    tx.execute(_Q_INSERT_ROWS, chunk_pk=row[0], lengths=lengths, rows=rows)
    return int(row[0])


def ready_tasks(tx: Tx, now: int, limits: Limits) -> list[tuple[int, int, bool]]:
    """Return the tasks for which a job may be due now, each with its number of waiting reports, and
    whether they are enough. If not, they are if they fill a new leader-selected batch.
    """
    rows = tx.all(_Q_READY, now=now, max_wait=limits.max_wait, min_size=limits.min_size)
    return [(task_pk, n, bool(enough)) for task_pk, n, enough in rows]


def next_ready(tx: Tx, now: int, limits: Limits) -> int | None:
    """Return when (ms) the next deferred chunk may be assigned, or the next waiting one has waited
    for others for long enough.
    """
    deferred = tx.one(_Q_NEXT, now=now)
    waiting = tx.one(_Q_NEXT, now=now - limits.max_wait)
    assert deferred is not None
    assert waiting is not None
    moments = deferred[0], None if waiting[0] is None else waiting[0] + limits.max_wait
    return min((at for at in moments if at is not None), default=None)


def has_due_after(tx: Tx, latest: int) -> bool:
    """Return whether a chunk is due only after ``latest`` (ms)."""
    return tx.one(_Q_BEYOND, latest=latest) is not None


def pull_forward(tx: Tx, latest: int, now: int) -> None:
    """Make chunks that are due only after ``latest`` due now: the clock was set back (rule E2)."""
    tx.execute(_Q_RECALL, latest=latest, now=now)


def waiting_in_collected(tx: Tx, task_pk: int, limit: int) -> list[tuple[int, int]]:
    """Return (chunk_pk, n) of chunks whose batch was collected without them (rules C2, C8)."""
    return [(pk, n) for pk, n in tx.all(_Q_COLLECTED, task_pk=task_pk, limit=limit)]


def waiting_expired(tx: Tx, task_pk: int, expired_before: int, limit: int) -> list[tuple[int, int]]:
    """Return (chunk_pk, n) of chunks whose newest report is below the watermark (C8, D6)."""
    rows = tx.all(_Q_EXPIRED, task_pk=task_pk, expired_before=expired_before, limit=limit)
    return [(pk, n) for pk, n in rows]


def assignable(tx: Tx, task_pk: int, now: int, times: tuple[int, int], limit: int) -> list[Waiting]:
    """Return due chunks in the order of acceptance, without those of closed batches (C2) and those
    behind the cut of a collection that wants them (C3).

    ``times`` are the first and the last that a report may have: chunks below are expired (D6), and
    those above are too early.
    """
    expired_before, too_early_after = times
    rows = tx.all(
        _Q_ASSIGNABLE,
        task_pk=task_pk,
        now=now,
        expired_before=expired_before,
        too_early_after=too_early_after,
        limit=limit,
    )
    return [Waiting(*row) for row in rows]


def assign(tx: Tx, chunk_pk: int, job_pk: int, bucket: bytes) -> None:
    """Assign a whole waiting chunk to a job."""
    tx.execute(_Q_ASSIGN, chunk_pk=chunk_pk, job_pk=job_pk, bucket=bucket)


def reassign(tx: Tx, chunk_pk: int, place: Place) -> None:
    """Move a whole assigned chunk to the job in ``place``, or back to waiting."""
    tx.execute(
        _Q_HAND_OVER,
        chunk_pk=chunk_pk,
        state=place.state,
        job_pk=place.job_pk,
        bucket=place.bucket,
        run_at=place.run_at,
        attempts=place.attempts,
    )


def decide(tx: Tx, chunk_pk: int) -> None:
    """Mark a chunk decided, since its reports are aggregated, rejected or lost; delete its rows."""
    tx.execute(_Q_DECIDE, chunk_pk=chunk_pk)
    tx.execute(_Q_DELETE_ROWS, chunk_pk=chunk_pk)


def of_job(tx: Tx, job_pk: int) -> list[StoredChunk]:
    """Return the chunks of an unfinished job, in the order of its reports."""
    return [StoredChunk(*row) for row in tx.all(_Q_OF_JOB, job_pk=job_pk)]


def sizes_of_job(tx: Tx, job_pk: int) -> list[tuple[int, int]]:
    """Return (chunk_pk, n) of an unfinished job's chunks, in the order of its reports."""
    return [(pk, n) for pk, n in tx.all(_Q_SIZES, job_pk=job_pk)]


def load(tx: Tx, chunk_pk: int) -> StoredChunk:
    """Load an existing chunk."""
    row = tx.one(_Q_ONE, chunk_pk=chunk_pk)
    assert row is not None
    return StoredChunk(*row)


def split(tx: Tx, chunk: StoredChunk, keep: bytes, first: Place, second: Place) -> tuple[int, int]:
    """Cut a chunk in two by the mask ``keep`` (rule D5), and return both keys.

    Neither part may be empty.
    """
    head = cut_chunk(chunk.ids, chunk.lengths, chunk.rows, keep)
    tail = cut_chunk(chunk.ids, chunk.lengths, chunk.rows, complement(keep))
    assert head is not None
    assert tail is not None
    remove(tx, chunk.chunk_pk)
    return insert(tx, first, head), insert(tx, second, tail)


def cut_off(tx: Tx, chunk: StoredChunk, off: bytes, place: Place) -> None:
    """Move the rows in the mask ``off`` to a chunk of their own; decide the others."""
    cut = cut_chunk(chunk.ids, chunk.lengths, chunk.rows, off)
    rest = cut_chunk(chunk.ids, chunk.lengths, chunk.rows, complement(off))
    assert cut is not None
    assert rest is not None
    insert(tx, place, cut)
    n, time_min, time_max, ids, _, _ = rest
    tx.execute(
        _Q_SHRINK, chunk_pk=chunk.chunk_pk, n=n, time_min=time_min, time_max=time_max, ids=ids
    )
    decide(tx, chunk.chunk_pk)


def remove(tx: Tx, chunk_pk: int) -> None:
    """Delete a chunk whose reports have been stored in others."""
    tx.execute(_Q_DELETE_ROWS, chunk_pk=chunk_pk)
    tx.execute(_Q_DELETE, chunk_pk=chunk_pk)


def past(tx: Tx, task_pk: int, expired_before: int, after: Found) -> list[Found]:
    """Find chunks below the watermark that are not assigned, oldest first."""
    return expiry.page(tx, _Q_PAST, after, task_pk=task_pk, expired_before=expired_before)


def drop(tx: Tx, chunk_pk: int, expired_before: int) -> tuple[int, bytes]:
    """Delete a chunk below the watermark, unless a job has taken it meanwhile.

    Return the number of its undecided reports, and its ids, which the caller may forget after the
    commit: no other row has them, because the parts of a cut chunk replace it.
    """
    row = tx.one(_Q_DROP, chunk_pk=chunk_pk, expired_before=expired_before)
    if row is None:
        return 0, b""
    tx.execute(_Q_DELETE_ROWS, chunk_pk=chunk_pk)
    state, n, ids = row
    return (n if ChunkState(state) is ChunkState.WAITING else 0), ids


def complement(mask: bytes) -> bytes:
    """Invert a mask."""
    return mask.translate(_COMPLEMENT)


_COMPLEMENT = bytes([1]) + bytes(255)


def columns_of(chunks: Sequence[StoredChunk]) -> list[tuple[bytes, bytes, bytes]]:
    """Return (ids, lengths, rows) of each chunk, for ``leader_start``."""
    return [(chunk.ids, chunk.lengths, chunk.rows) for chunk in chunks]


def backlog(
    tx: Tx, task_pk: int, batch: tuple[bytes, bytes], cut: int | None, too_early_after: int
) -> Backlog:
    """Count the undecided reports of the batch [lo, hi), or of the whole task if ``hi`` is empty
    (leader-selected, unbound). Without a cut, all of them count as up to the cut.

    Chunks whose reports are all above ``too_early_after`` don't count: they were accepted while the
    clock was wrong, and may wait for years. Chunks that only the Helper found too early do.
    """
    lo, hi = batch
    if hi:
        queries = (_Q_BACKLOG_OF_RANGE, _Q_TOO_EARLY_OF_RANGE)
        span = {"lo": lo, "hi": hi}
    else:
        queries = (_Q_BACKLOG, _Q_TOO_EARLY)
        span = {}
    found = tx.one(queries[0], task_pk=task_pk, cut=cut, **span)
    early = tx.one(queries[1], task_pk=task_pk, cut=cut, too_early_after=too_early_after, **span)
    assert found is not None
    assert early is not None
    waiting, assigned, undecided, newest_seq = found
    return Backlog(waiting - early[0], assigned, undecided - early[1], newest_seq)
