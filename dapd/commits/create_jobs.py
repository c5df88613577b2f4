"""The transaction that turns a task's waiting chunks into aggregation jobs.

Sections "Leader Initialization", "Batch Buckets" (a Leader checks "before adding a report to an
aggregation job"), "Leader-selected Batch Mode"; rules C2, C3, C6, C8, D5. ``dapd.protocol.packing``
decides how chunks are packed.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from dapd.datastore import chunks, collections, counters, leader_jobs, outstanding, watermarks
from dapd.datastore.chunks import Place
from dapd.datastore.outstanding import Roomy
from dapd.datastore.sqlite import Tx
from dapd.messages.common import BATCH_ID_SIZE
from dapd.protocol.packing import Limits, Packed, Piece, Plan, fill, pack
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
    look = _look(tx, task, limits, at)
    _refuse(tx, task, look.refused, at.now)
    made = look.plan.jobs[:_MOST_JOBS]
    maker = _Maker(tx, task, at.now, random_bytes, [each.batch.batch_id for each in look.batches])
    for packed in made:
        maker.make(packed)
    maker.note_rooms(look.batches)
    more = len(made) < len(look.plan.jobs) or (bool(made) and look.chunks == _MOST_CHUNKS)
    return Created(len(made), more or len(look.refused) >= _MOST_REFUSED, look.plan.next_at)


@dataclass(frozen=True, slots=True)
class _Look:
    """What is to be done for a task.

    ``refused`` are the sizes of the chunks to drop, by their keys, each with the name of its
    counter; ``batches`` are those with room, and ``chunks`` is the number of those looked at.
    """

    refused: dict[int, tuple[str, int]]
    batches: list[Roomy]
    chunks: int
    plan: Plan


def _look(tx: Tx, task: Task, limits: Limits, at: Instant) -> _Look:
    task_pk, refused_before = task.task_pk, task.refused_before_at(at)
    refused = _refused(tx, task_pk, refused_before)
    asked = collections.waiting(tx, task_pk)
    times = refused_before, task.too_early_after_at(at)
    waiting = chunks.assignable(tx, task_pk, at.now, times, _MOST_CHUNKS)
    if task.by_time:
        return _Look(refused, [], len(waiting), pack(waiting, asked, limits, at.now))
    target = task.batch_target_size
    batches = outstanding.roomy_batches(tx, task_pk, watermarks.expiring_before(tx, task, at))
    rooms = [each.batch.room(target) for each in batches]
    plan = fill(waiting, asked, limits, (rooms, target), at.now)
    return _Look(refused, batches, len(waiting), plan)


def _refused(tx: Tx, task_pk: int, refused_before: int) -> dict[int, tuple[str, int]]:
    """Return the chunks of collected batches and those below the watermark (rule C8), at most
    ``_MOST_REFUSED`` of each.
    """
    expired = chunks.waiting_expired(tx, task_pk, refused_before, _MOST_REFUSED)
    collected = chunks.waiting_in_collected(tx, task_pk, _MOST_REFUSED)
    refused = {pk: ("aggregate_report_dropped", n) for pk, n in expired}
    return refused | {pk: ("aggregate_batch_collected", n) for pk, n in collected}


def _refuse(tx: Tx, task: Task, refused: Mapping[int, tuple[str, int]], now: int) -> None:
    """Count and drop chunks."""
    for chunk_pk, (name, n) in refused.items():
        chunks.decide(tx, chunk_pk)
        counters.add(tx, task.task_pk, {name: n})
    if refused:
        collections.touch(tx, task.task_pk, now)


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
        self._added: Counter[bytes] = Counter()
        # The rest of each chunk that was cut: its row and its number of reports.
        self._rests: dict[int, tuple[int, int]] = {}

    def make(self, packed: Packed) -> None:
        batch_id = self._batch_id(packed.batch)
        self._added[batch_id] += packed.n
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

    def note_rooms(self, before: Sequence[Roomy]) -> None:
        """Note how many more reports each batch can take, if that isn't known already."""
        task_pk, target = self._task.task_pk, self._task.batch_target_size
        noted = {each.batch.batch_id: each.room for each in before}
        rooms = {each.batch.batch_id: each.batch.room(target) for each in before}
        for batch_id in self._batch_ids:
            room = rooms.get(batch_id, target) - self._added[batch_id]
            if room != noted.get(batch_id):
                outstanding.note_room(self._tx, task_pk, batch_id, room)

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


def due_tasks(
    tx: Tx, now: int, limits: Limits, find: Callable[[int], Task | None]
) -> tuple[list[Task], int | None]:
    """Return those of the tasks that ``find`` knows for which a job may be due: by the age or the
    number of their reports, or because a collection waits. Return also when (ms) the next may be.
    """
    found = [
        task
        for task_pk, n, enough in chunks.ready_tasks(tx, now, limits)
        if (task := find(task_pk)) is not None and (enough or n >= task.batch_target_size)
    ]
    return found, chunks.next_ready(tx, now, limits)


def tasks_with_work(tx: Tx, tasks: Sequence[Task], limits: Limits, at: Instant) -> list[Task]:
    """Return the tasks for which ``create`` has something to do; only for those it needs to occupy
    the writer.
    """
    return [task for task in tasks if _has_work(task, _look(tx, task, limits, at))]


def _has_work(task: Task, look: _Look) -> bool:
    target = task.batch_target_size
    return bool(look.refused or look.plan.jobs) or any(
        each.room != each.batch.room(target) for each in look.batches
    )
