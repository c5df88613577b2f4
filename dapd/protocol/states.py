"""The states of a Leader's aggregation job and the moves between them, as one table; and what the
next step of a job in any state needs.

Sections "Leader Initialization", "Asynchronous Request Handling". The commits in ``dapd.commits``
make the moves, and each names the state it moves from (rule D1).
"""

from __future__ import annotations

from enum import StrEnum

COMPUTING = frozenset({"assigned", "received", "waiting"})
"""States of unfinished jobs of either kind whose next step needs a computing slot (rule E1)."""
EXCHANGING = frozenset({"stored", "polling", "frozen"})
"""States whose next step asks the peer, and needs its permit."""
UNFINISHED = COMPUTING | EXCHANGING


class LeaderJob(StrEnum):
    """A Leader's aggregation job."""

    ASSIGNED = "assigned"
    """It holds its chunks; nothing is computed."""
    STORED = "stored"
    """The exact request and the verification state are stored; to be sent (I3)."""
    POLLING = "polling"
    """The Helper works on it at a known Location."""
    FINISHED = "finished"
    """Every report is aggregated, rejected and counted, or waiting for a later job."""
    ABANDONED = "abandoned"
    """Refused for good: its reports are in two jobs of half the size, or it was one report (D5)."""
    EXPIRED = "expired"
    """Its newest report fell below the watermark first (D6)."""
    LOST = "lost"
    """Given up by hand, after a restore, or without its key: its reports are lost, and their batch
    is suspect (D4).
    """


LEADER_MOVES: dict[LeaderJob, frozenset[LeaderJob]] = {
    LeaderJob.ASSIGNED: frozenset(
        {LeaderJob.STORED, LeaderJob.FINISHED, LeaderJob.EXPIRED, LeaderJob.LOST}
    ),
    LeaderJob.STORED: frozenset(
        {
            LeaderJob.STORED,
            LeaderJob.POLLING,
            LeaderJob.FINISHED,
            LeaderJob.ABANDONED,
            LeaderJob.EXPIRED,
            LeaderJob.LOST,
        }
    ),
    LeaderJob.POLLING: frozenset(
        {
            LeaderJob.POLLING,
            LeaderJob.STORED,
            LeaderJob.FINISHED,
            LeaderJob.ABANDONED,
            LeaderJob.EXPIRED,
            LeaderJob.LOST,
        }
    ),
    LeaderJob.FINISHED: frozenset(),
    LeaderJob.ABANDONED: frozenset(),
    LeaderJob.EXPIRED: frozenset(),
    LeaderJob.LOST: frozenset(),
}


def require_move(old: LeaderJob, new: LeaderJob) -> None:
    """Raise ``ValueError`` for a move that the table lacks: a fault of this program."""
    if new not in LEADER_MOVES[old]:
        raise ValueError(f"an aggregation job can't go from {old} to {new}")
