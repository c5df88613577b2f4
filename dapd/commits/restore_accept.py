"""The transaction that reopens quarantined batches, and what an operator compares before it.

Only the peer knows whether a batch was collected after the backup was made. Reopened, a batch can
be collected once more; its reports stay refused, because their ids may be forgotten all the same.
"""

from __future__ import annotations

from dataclasses import dataclass

from dapd.datastore import batches
from dapd.datastore.engines import Tx
from dapd.datastore.tasks import Outline
from dapd.protocol.batches import BucketRange, batch_id_range, gaps, merged, time_bucket


@dataclass(frozen=True, slots=True)
class BatchTally:
    """What one bucket holds here; ``checksum`` is that of its report ids, as DAP counts them.

    Both Aggregators have the same for a batch that they agree on.
    """

    bucket: bytes
    n: int
    checksum: bytes
    state: str | None


@dataclass(frozen=True, slots=True)
class Quarantine:
    """One task as a restore has left it. ``ranges`` are those that are still closed for it."""

    task: Outline
    ranges: list[BucketRange]
    tallies: list[BatchTally]
    is_complete: bool
    """Whether ``tallies`` has all buckets; else it has the first ones."""


def restore_accept(tx: Tx, task: Outline, within: BucketRange) -> list[BucketRange]:
    """Open what is quarantined in ``within``; the ranges that were opened."""
    opened = []
    for quarantined in batches.quarantined_ranges(tx, task.task_pk, within):
        batches.release(tx, task.task_pk, quarantined)
        kept = gaps(quarantined, [within])
        batches.quarantine(tx, task.task_pk, kept)
        opened += gaps(quarantined, kept)
    return merged(opened)


def accepted_range(task: Outline, batch: tuple[int, int] | bytes | None) -> BucketRange:
    """What an operator names: (start, end) in time precisions, a batch id, or all of the task."""
    match batch:
        case None:
            # Above every bucket: those are 8 bytes of time, or a batch id with one byte more.
            return BucketRange(b"", b"\xff" * 34)
        case bytes():
            return batch_id_range(batch)
        case (start, end):
            assert task.by_time
            return BucketRange(time_bucket(start), time_bucket(end))


def inspect(tx: Tx, task: Outline, limit: int, *, everything: bool) -> Quarantine:
    """What is quarantined of a task, and what its buckets hold: the first ``limit`` of those that
    are quarantined, or of all (``everything``), which is what the peer compares with.
    """
    states = {
        bucket: batches.bucket_state(tx, task.task_pk, bucket)
        for bucket in sorted(batches.buckets(tx, task.task_pk))
    }
    wanted = [bucket for bucket, state in states.items() if everything or state == "quarantined"]
    tallies = []
    for bucket in wanted[:limit]:
        n, checksum = batches.tally(tx, task.task_pk, bucket)
        tallies.append(BatchTally(bucket, n, checksum, states[bucket]))
    ranges = merged(batches.quarantined_ranges(tx, task.task_pk))
    return Quarantine(task, ranges, tallies, len(wanted) <= limit)
