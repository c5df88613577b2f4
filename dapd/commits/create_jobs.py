"""The transaction that turns a task's waiting chunks into aggregation jobs.

Sections "Leader Initialization", "Batch Buckets" (a Leader checks "before adding a report to an
aggregation job"), "Leader-selected Batch Mode"; rules C2, C3, C6, C8, D5. ``dapd.protocol.packing``
decides how chunks are packed.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from dapd.datastore import chunks, collections, counters, leader_jobs, outstanding, watermarks
from dapd.datastore.chunks import Place
from dapd.datastore.sqlite import Tx
from dapd.messages.common import BATCH_ID_SIZE
from dapd.protocol.packing import Limits, Packed, Piece, fill, pack
from dapd.protocol.task import Instant, Task

JOB_ID_SIZE = 16
_MOST_JOBS = 64
"""The most jobs that one transaction creates, which limits how long it holds the write lock."""
_MOST_CHUNKS = 20_000
"""The most chunks that one transaction looks at."""
_MOST_REFUSED = 500
"""The most chunks that one transaction drops for each reason."""

RandomBytes = Callable[[int], bytes]


@dataclass(frozen=True, slots=True)
class Created:
    """The number of jobs created, whether more can be created now, and when (ms) the next can."""

    jobs: int
    more: bool
    next_at: int | None


def create(tx: Tx, task: Task, limits: Limits, at: Instant, random_bytes: RandomBytes) -> Created:
    """Drop chunks that can't be aggregated any more, and create jobs from those that are due."""
    now = at.now
    refused_before = task.refused_before_at(at)
    refused = _refuse(tx, task, refused_before, now)
    asked = collections.waiting(tx, task.task_pk)
    times = refused_before, task.too_early_after_at(at)
    waiting = chunks.assignable(tx, task.task_pk, now, times, _MOST_CHUNKS)
    if task.by_time:
        plan = pack(waiting, asked, limits, now)
        batch_ids: list[bytes] = []
    else:
        target = task.batch_target_size
        mark = watermarks.expiring_before(tx, task, at)
        batches = outstanding.open_batches(tx, task.task_pk, mark)
        batch_ids = [batch.batch_id for batch in batches]
        rooms = [batch.room(target) for batch in batches]
        plan = fill(waiting, asked, limits, (rooms, target), now)
    made = plan.jobs[:_MOST_JOBS]
    maker = _Maker(tx, task, now, random_bytes, batch_ids)
    for packed in made:
        maker.make(packed)
    more = len(made) < len(plan.jobs) or (bool(made) and len(waiting) == _MOST_CHUNKS)
    return Created(len(made), more or refused >= _MOST_REFUSED, plan.next_at)


def _refuse(tx: Tx, task: Task, refused_before: int, now: int) -> int:
    """Count and drop chunks of collected batches and those below the watermark (rule C8), at most
    ``_MOST_REFUSED`` of each. Return their number.
    """
    collected = chunks.waiting_in_collected(tx, task.task_pk, _MOST_REFUSED)
    expired = chunks.waiting_expired(tx, task.task_pk, refused_before, _MOST_REFUSED)
    refused = {pk: "aggregate_batch_collected" for pk, _ in collected}
    refused |= {pk: "aggregate_report_dropped" for pk, _ in expired if pk not in refused}
    if not refused:
        return 0
    sizes = dict([*collected, *expired])
    for chunk_pk, name in refused.items():
        chunks.decide(tx, chunk_pk)
        counters.add(tx, task.task_pk, {name: sizes[chunk_pk]})
    collections.touch(tx, task.task_pk, now)
    return len(refused)


class _Maker:
    """Creates one transaction's jobs, and appends the batches that it opens to ``batch_ids``."""

    def __init__(
        self, tx: Tx, task: Task, now: int, random_bytes: RandomBytes, batch_ids: list[bytes]
    ) -> None:
        self._tx = tx
        self._task = task
        self._now = now
        self._random_bytes = random_bytes
        self._batch_ids = batch_ids
        # The rest of each chunk that was cut: its row and its number of reports.
        self._rests: dict[int, tuple[int, int]] = {}

    def make(self, packed: Packed) -> None:
        batch_id = self._batch_id(packed.batch)
        job = leader_jobs.NewJob(
            id=self._random_bytes(JOB_ID_SIZE),
            task_pk=self._task.task_pk,
            n=packed.n,
            batch_id=batch_id,
            run_at=self._now,
            now=self._now,
        )
        job_pk = leader_jobs.insert(self._tx, job)
        for piece in packed.pieces:
            self._assign(piece, job_pk, batch_id or piece.chunk.bucket)
        leader_jobs.note_newest(self._tx, job_pk)

    def _batch_id(self, index: int | None) -> bytes:
        """Return the batch's id, opening new batches up to it; empty in the time-interval mode."""
        if index is None:
            return b""
        while index >= len(self._batch_ids):
            batch_id = self._random_bytes(BATCH_ID_SIZE)
            outstanding.insert(self._tx, self._task.task_pk, batch_id)
            self._batch_ids.append(batch_id)
        return self._batch_ids[index]

    def _assign(self, piece: Piece, job_pk: int, bucket: bytes) -> None:
        chunk_pk, left = self._rests.get(
            piece.chunk.chunk_pk, (piece.chunk.chunk_pk, piece.chunk.n)
        )
        if piece.n == left:
            chunks.assign(self._tx, chunk_pk, job_pk, bucket)
            return
        chunk = chunks.load(self._tx, chunk_pk)
        rest = Place(chunk.task_pk, chunk.seq, chunk.bucket, chunk.run_at, chunk.attempts)
        mine = Place(chunk.task_pk, chunk.seq, bucket, chunk.run_at, chunk.attempts, job_pk)
        keep = bytes([1]) * piece.n + bytes(left - piece.n)
        _, rest_pk = chunks.split(self._tx, chunk, keep, mine, rest)
        self._rests[piece.chunk.chunk_pk] = (rest_pk, left - piece.n)


def due_tasks(tx: Tx, now: int) -> tuple[Sequence[int], int | None]:
    """Return the tasks with chunks that may be assigned now, and when (ms) the next one may be."""
    return chunks.tasks_with_waiting(tx, now), chunks.next_due(tx, now)
