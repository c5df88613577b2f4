"""Pack waiting chunks into aggregation jobs.

Sections "Leader Initialization" (the Leader chooses candidate reports) and "Leader-selected Batch
Mode"; rules C6, C8, D5. Left out: chunks of collected and closed batches, and those behind a
collection's cut, which the transaction doesn't offer.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

_OPEN_JOBS = 8


@dataclass(frozen=True, slots=True)
class Waiting:
    """A waiting chunk of ``n`` reports, which may be assigned since ``run_at`` (ms)."""

    chunk_pk: int
    seq: int
    bucket: bytes
    n: int
    run_at: int


@dataclass(frozen=True, slots=True)
class WaitingCollection:
    """A collection that waits for [lo, hi), or for the next batch if ``hi`` is empty."""

    lo: bytes
    hi: bytes

    def wants(self, bucket: bytes) -> bool:
        return not self.hi or self.lo <= bucket < self.hi


@dataclass(frozen=True, slots=True)
class Limits:
    """The sizes of a job in reports, and the longest time that a report waits for others, in ms."""

    min_size: int
    max_size: int
    max_wait: int


@dataclass(frozen=True, slots=True)
class Piece:
    """The next ``n`` reports of a chunk."""

    chunk: Waiting
    n: int


@dataclass(slots=True)
class Packed:
    """The chunks of one job; ``batch`` is an index into the batches of ``fill``, else ``None``."""

    pieces: list[Piece] = field(default_factory=list)
    n: int = 0
    batch: int | None = None
    fills_batch: bool = False

    def add(self, piece: Piece) -> None:
        self.pieces.append(piece)
        self.n += piece.n


@dataclass(frozen=True, slots=True)
class Plan:
    """The jobs to create now, and when (ms) the next of the other chunks has waited long enough."""

    jobs: list[Packed]
    next_at: int | None


def pack(
    chunks: Sequence[Waiting], asked: Sequence[WaitingCollection], limits: Limits, now: int
) -> Plan:
    """Pack time-interval jobs: first fit among the latest few, in the order of acceptance.

    A chunk larger than the maximum gets a job of its own (rule D5).
    """
    bins: list[Packed] = []
    for chunk in chunks:
        for packed in bins[-_OPEN_JOBS:]:
            if packed.n + chunk.n <= limits.max_size:
                packed.add(Piece(chunk, chunk.n))
                break
        else:
            bins.append(Packed([Piece(chunk, chunk.n)], chunk.n))
    return _ripe(bins, asked, limits, now)


def fill(
    chunks: Sequence[Waiting],
    asked: Sequence[WaitingCollection],
    limits: Limits,
    batches: tuple[Sequence[int], int],
    now: int,
) -> Plan:
    """Pack leader-selected jobs: the oldest batch with room gets the oldest reports (rule C6).

    ``batches`` are the rooms of the open batches, oldest first, and the target size. A job whose
    ``batch`` is beyond them starts a new one. Chunks are cut to fit.
    """
    jobs: list[Packed] = []
    rooms, target = batches
    left = list(rooms)
    batch = 0
    current: Packed | None = None
    for chunk in chunks:
        remaining = chunk.n
        while remaining:
            while batch < len(left) and not left[batch]:
                batch += 1
                current = None
            if batch == len(left):
                left.append(target)
            if current is None or current.n == limits.max_size:
                current = Packed(batch=batch)
                jobs.append(current)
            n = min(remaining, left[batch], limits.max_size - current.n)
            current.add(Piece(chunk, n))
            remaining -= n
            left[batch] -= n
            current.fills_batch = not left[batch]
    return _ripe(jobs, asked, limits, now)


def _ripe(
    packed: Sequence[Packed], asked: Sequence[WaitingCollection], limits: Limits, now: int
) -> Plan:
    """Select the jobs that are big enough, asked for by a collection, or have waited enough."""
    jobs = []
    next_at: int | None = None
    for job in packed:
        oldest = min(piece.chunk.run_at for piece in job.pieces)
        if (
            job.n >= limits.min_size
            or job.fills_batch
            or oldest + limits.max_wait <= now
            or any(each.wants(piece.chunk.bucket) for each in asked for piece in job.pieces)
        ):
            jobs.append(job)
        else:
            next_at = min(next_at or oldest + limits.max_wait, oldest + limits.max_wait)
    return Plan(jobs, next_at)
