"""The states of jobs, chunks and closed ranges, and a table of the legal moves of jobs and chunks.

Sections "Leader Initialization", "Helper Initialization", "Asynchronous Request Handling" and
"Collection Job Initialization". The transactions in ``dapd.commits`` make the moves, and each names
the state that it moves from (rule D1). SQL repeats the states as plain literals, since a bound
parameter can't use a partial index; Python code takes them only from here. ``None`` in a table
stands for a new row.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Literal


class LeaderJobState(StrEnum):
    """The states of a Leader's aggregation job."""

    ASSIGNED = "assigned"
    """The job has its chunks; nothing is computed yet."""
    STORED = "stored"
    """The exact request and the verification state are stored, ready to be sent (I3)."""
    POLLING = "polling"
    """The Helper works on the job at a known Location."""
    FINISHED = "finished"
    """Every report is aggregated, rejected and counted, or waiting for a later job."""
    ABANDONED = "abandoned"
    """It ended without an answer, and its reports are in other jobs or wait for one: it was refused
    for good (D5; a single report is rejected), or not sent before its batch expired (C6).
    """
    EXPIRED = "expired"
    """All its reports fell below the watermark before it could finish (D6)."""
    LOST = "lost"
    """The job was given up: after long refusal, by an operator, after a restore, or because its key
    is gone. Its reports are lost; if it was ever sent, their batch is suspect (D4).
    """


class HelperJobState(StrEnum):
    """The states of a Helper's aggregation job."""

    RECEIVED = "received"
    """The exact request is stored, and has yet to be verified."""
    FINISHED = "finished"
    """The job's response, its contributions and its admitted ids are stored."""
    DELETED = "deleted"
    """Only a tombstone is left, with the job's admitted ids (A6)."""


class CollectionState(StrEnum):
    """The states of a Leader's collection job."""

    WAITING = "waiting"
    """The collection waits for reports, or for the jobs that aggregate them (C3)."""
    FROZEN = "frozen"
    """The batch is closed, and the exact AggregateShareReq is stored, ready to be sent (C2, I3)."""
    POLLING = "polling"
    """The Helper works on the aggregate share at a known Location."""
    FINISHED = "finished"
    """The CollectionJobResp is stored."""
    FAILED = "failed"
    """The collection ended with an error, which its resource shows."""
    DELETED = "deleted"
    """The Collector or an operator has deleted the collection."""


class ChunkState(StrEnum):
    """The states of a chunk of a Leader's reports."""

    WAITING = "waiting"
    """No job has taken the chunk yet."""
    ASSIGNED = "assigned"
    """The chunk belongs to an unfinished job."""
    DECIDED = "decided"
    """Each of the chunk's reports is aggregated, or rejected and counted."""


class RangeState(StrEnum):
    """The states of a range of buckets that take no more reports."""

    CLOSED = "closed"
    """A collection of this Leader's is running (C2)."""
    GIVEN_UP = "given_up"
    """The collection was given up. It keeps its request, with which an identical query goes on."""
    COLLECTED = "collected"
    """The range is collected for good (C1)."""
    QUARANTINED = "quarantined"
    """A restore may have forgotten that it was collected, or some of its reports are lost."""
    EXPIRED = "expired"
    """A Helper's leader-selected batch that has expired; no late job opens it again (C6)."""


JobState = LeaderJobState | HelperJobState | CollectionState
"""The state of any job. States of different kinds with the same name compare equal."""


Kind = Literal["aggregation", "collection"]


def job_state(kind: Kind, role: Literal["leader", "helper"], name: str) -> JobState:
    """Return the state with this name of a job of this kind, at an Aggregator in this role."""
    if kind == "collection":
        return CollectionState(name)
    return LeaderJobState(name) if role == "leader" else HelperJobState(name)


COMPUTING: frozenset[JobState] = frozenset(
    {LeaderJobState.ASSIGNED, HelperJobState.RECEIVED, CollectionState.WAITING}
)
"""States of unfinished jobs of any kind whose next step needs a computing slot (rule E1)."""
EXCHANGING: frozenset[JobState] = frozenset(
    {
        LeaderJobState.STORED,
        LeaderJobState.POLLING,
        CollectionState.FROZEN,
        CollectionState.POLLING,
    }
)
"""States of unfinished jobs whose next step asks the peer, and needs one of its permits."""
UNFINISHED = COMPUTING | EXCHANGING


_LEADER_ENDS = frozenset(
    {
        LeaderJobState.FINISHED,
        LeaderJobState.ABANDONED,
        LeaderJobState.EXPIRED,
        LeaderJobState.LOST,
    }
)

LEADER_JOB_MOVES: dict[LeaderJobState | None, frozenset[LeaderJobState]] = {
    None: frozenset({LeaderJobState.ASSIGNED}),
    LeaderJobState.ASSIGNED: frozenset(
        {
            LeaderJobState.STORED,
            LeaderJobState.FINISHED,
            LeaderJobState.ABANDONED,
            LeaderJobState.EXPIRED,
            LeaderJobState.LOST,
        }
    ),
    LeaderJobState.STORED: _LEADER_ENDS | {LeaderJobState.STORED, LeaderJobState.POLLING},
    LeaderJobState.POLLING: _LEADER_ENDS | {LeaderJobState.STORED, LeaderJobState.POLLING},
    LeaderJobState.FINISHED: frozenset(),
    LeaderJobState.ABANDONED: frozenset(),
    LeaderJobState.EXPIRED: frozenset(),
    LeaderJobState.LOST: frozenset(),
}

HELPER_JOB_MOVES: dict[HelperJobState | None, frozenset[HelperJobState]] = {
    None: frozenset({HelperJobState.RECEIVED, HelperJobState.FINISHED}),
    HelperJobState.RECEIVED: frozenset({HelperJobState.FINISHED, HelperJobState.DELETED}),
    HelperJobState.FINISHED: frozenset({HelperJobState.DELETED}),
    HelperJobState.DELETED: frozenset(),
}

_COLLECTION_ENDS = frozenset(
    {CollectionState.FINISHED, CollectionState.FAILED, CollectionState.DELETED}
)

COLLECTION_MOVES: dict[CollectionState | None, frozenset[CollectionState]] = {
    None: frozenset({CollectionState.WAITING, CollectionState.FROZEN}),
    CollectionState.WAITING: frozenset(
        {CollectionState.FROZEN, CollectionState.FAILED, CollectionState.DELETED}
    ),
    CollectionState.FROZEN: _COLLECTION_ENDS | {CollectionState.FROZEN, CollectionState.POLLING},
    CollectionState.POLLING: _COLLECTION_ENDS | {CollectionState.FROZEN, CollectionState.POLLING},
    CollectionState.FINISHED: frozenset({CollectionState.DELETED}),
    CollectionState.FAILED: frozenset({CollectionState.DELETED}),
    CollectionState.DELETED: frozenset(),
}

CHUNK_MOVES: dict[ChunkState | None, frozenset[ChunkState]] = {
    None: frozenset({ChunkState.WAITING, ChunkState.ASSIGNED}),
    ChunkState.WAITING: frozenset({ChunkState.ASSIGNED, ChunkState.DECIDED}),
    ChunkState.ASSIGNED: frozenset({ChunkState.ASSIGNED, ChunkState.WAITING, ChunkState.DECIDED}),
    ChunkState.DECIDED: frozenset(),
}


def require_move(old: LeaderJobState, new: LeaderJobState) -> None:
    """Raise ``ValueError`` for a move that is not in the table, which is a bug of ours."""
    if new not in LEADER_JOB_MOVES[old]:
        raise ValueError(f"an aggregation job can't go from {old} to {new}")
