"""Properties of packing arbitrary chunks into jobs."""

from __future__ import annotations

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from dapd.protocol.batches import OpenBatch
from dapd.protocol.packing import Limits, Packed, Waiting, WaitingCollection, fill, pack

NOW = 1_000_000
LIMITS = Limits(min_size=10, max_size=20, max_wait=1000)

chunk_lists = st.lists(
    st.tuples(st.integers(1, 30), st.integers(0, 2000), st.sampled_from([b"a", b"b", b"c"]))
).map(
    lambda rows: [
        Waiting(pk, pk, bucket, n, NOW - age) for pk, (n, age, bucket) in enumerate(rows, 1)
    ]
)


def taken(jobs: list[Packed]) -> Counter[int]:
    counts: Counter[int] = Counter()
    for job in jobs:
        assert job.n == sum(piece.n for piece in job.pieces)
        for piece in job.pieces:
            counts[piece.chunk.chunk_pk] += piece.n
    return counts


@given(chunks=chunk_lists)
def test_every_chunk_is_in_one_job_or_waits_for_a_reason(chunks: list[Waiting]) -> None:
    """Jobs exceed the maximum only for a larger chunk; what has waited long enough is packed."""
    plan = pack(chunks, [], LIMITS, NOW)
    counts = taken(plan.jobs)
    for chunk in chunks:
        assert counts[chunk.chunk_pk] in (0, chunk.n)
        if chunk.run_at + LIMITS.max_wait <= NOW:
            assert counts[chunk.chunk_pk] == chunk.n
    for job in plan.jobs:
        assert job.n <= LIMITS.max_size or len(job.pieces) == 1
    assert (plan.next_at is None) == (len(chunks) == sum(1 for n in counts.values() if n))
    assert plan.next_at is None or plan.next_at > NOW


@given(chunks=chunk_lists)
def test_c3_the_asked_batch_is_flushed(chunks: list[Waiting]) -> None:
    """C3: all chunks of the asked batch go at once, however few."""
    plan = pack(chunks, [WaitingCollection(b"b", b"c")], LIMITS, NOW)
    counts = taken(plan.jobs)
    for chunk in chunks:
        if chunk.bucket == b"b":
            assert counts[chunk.chunk_pk] == chunk.n


@given(chunks=chunk_lists, rooms=st.lists(st.integers(0, 40), max_size=4))
def test_c6_batches_are_never_overfilled_and_filled_in_order(
    chunks: list[Waiting], rooms: list[int]
) -> None:
    """C6: the oldest batch with room first, to its target exactly; D5: chunks are cut to fit."""
    target = 35
    plan = fill(chunks, [WaitingCollection(b"", b"")], LIMITS, (rooms, target), NOW)
    counts = taken(plan.jobs)
    assert all(counts[chunk.chunk_pk] == chunk.n for chunk in chunks)
    filled: Counter[int] = Counter()
    for job in plan.jobs:
        assert job.n <= LIMITS.max_size
        assert job.batch is not None
        filled[job.batch] += job.n
    room = [*rooms, *[target] * (len(filled) + 1)]
    used = sorted(filled)
    for batch in used[:-1]:
        assert filled[batch] == room[batch]
    assert all(filled[batch] <= room[batch] for batch in used)
    assert all(not room[batch] for batch in range(max(used, default=0)) if batch not in filled)


def test_c6_a_batch_is_full_by_reports_aggregated_not_assigned() -> None:
    """C6: reports on their way take up room; rejected ones give it back."""
    assert OpenBatch(b"", 5, 5).room(10) == 0
    assert OpenBatch(b"", 8, 0).room(10) == 2
    assert OpenBatch(b"", 12, 0).room(10) == 0
    assert OpenBatch(b"", 5, 0, suspect=True).room(10) == 0
