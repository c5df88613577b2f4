"""What the Leader makes of answers, as pure functions; and the moves of its jobs."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dapd.protocol import leader
from dapd.protocol.leader import Moment, Standing
from dapd.protocol.states import LEADER_JOB_MOVES, LeaderJobState, require_move

MOMENT = Moment(now=1_000_000, minimum=1, maximum=600, poll_min=0.25, poll_max=60, jitter=0)
STORED = Standing(LeaderJobState.STORED, 3, 1)
POLLING = Standing(LeaderJobState.POLLING, 3, 1, "http://h/job")
TYPES = [
    "unrecognizedTask",
    "unrecognizedAggregationJob",
    "stepMismatch",
    "unsupportedExtension",
    "invalidAggregationParameter",
    None,
]


@pytest.mark.parametrize("status", [400, 401, 403, 404, 405, 415, 422])
@pytest.mark.parametrize("type", TYPES)
@pytest.mark.parametrize("sends", [1, 2])
def test_d4_every_other_refusal_is_unknown(status: int, type: str | None, sends: int) -> None:
    """D4: the pair's configuration or lost state, no report's fault."""
    assert not leader.refusal_is_final(status, type, sends)
    assert leader.likely_cause(status, type)


def test_d4_only_413_and_invalid_message_at_the_first_send_are_final() -> None:
    """D4: at any later send, an earlier one may have been stored."""
    assert leader.refusal_is_final(413, None, 1)
    assert leader.refusal_is_final(400, "invalidMessage", 1)
    assert not leader.refusal_is_final(413, None, 2)
    assert not leader.refusal_is_final(400, "invalidMessage", 2)


@pytest.mark.parametrize(("told", "seconds"), [(0, 0.25), (7, 7), (10**9, 60)])
def test_a_retry_after_is_followed_within_bounds(told: float, seconds: int) -> None:
    """Section "Asynchronous Request Handling": Retry-After decides, bounded on both sides."""
    later = leader.processing(STORED, "http://h/job", told, MOMENT)
    assert (later.state, later.run_at - MOMENT.now) == (LeaderJobState.POLLING, seconds * 1000)
    assert later.attempts == 0


def test_polls_without_retry_after_become_rarer() -> None:
    """I5: exponential back-off, from the start when the job begins to be polled."""
    waits = []
    standing = STORED
    for _ in range(8):
        later = leader.processing(standing, "http://h/job", None, MOMENT)
        waits.append((later.run_at - MOMENT.now) // 1000)
        standing = Standing(later.state, later.attempts, later.sends, later.location)
    assert waits == [1, 2, 4, 8, 16, 32, 60, 60]


@given(status=st.none() | st.integers(200, 599), told=st.none() | st.floats(0, 1e9))
def test_i4_an_unknown_outcome_always_goes_on(status: int | None, told: float | None) -> None:
    """I4: no number of errors ends a job; its sends stay counted and it is due in bounded time."""
    for standing in (STORED, POLLING):
        later = leader.unknown(standing, status, told, "why", MOMENT)
        assert later.state in (LeaderJobState.STORED, LeaderJobState.POLLING)
        assert later.sends == standing.sends
        assert MOMENT.now < later.run_at <= MOMENT.now + 600_000
        assert (later.state is LeaderJobState.POLLING) <= (later.location == POLLING.location)


def test_a_poll_is_repeated_after_a_transient_failure_and_else_the_job_is_sent_again() -> None:
    """D4: a Location that answers with something wrong is given up, the stored bytes are not."""
    for status in (None, 408, 425, 429, 500, 503):
        assert leader.unknown(POLLING, status, None, "", MOMENT).state is LeaderJobState.POLLING
    for status in (200, 302):
        assert leader.unknown(POLLING, status, None, "", MOMENT).state is LeaderJobState.STORED


def test_d5_a_final_refusal_before_any_acceptance_settles_the_send() -> None:
    """D5: the job waits, and its next send is its first again, so that it can be halved then."""
    assert leader.settled(STORED, "", MOMENT).sends == 0
    assert leader.misfit(STORED, "", MOMENT).sends == STORED.sends


def test_moves_that_the_table_lacks_are_refused() -> None:
    """One table of moves; what ended stays ended."""
    for old in LeaderJobState:
        for new in LeaderJobState:
            if new in LEADER_JOB_MOVES[old]:
                require_move(old, new)
            else:
                with pytest.raises(ValueError, match="can't go"):
                    require_move(old, new)
    ended = [LeaderJobState.FINISHED, LeaderJobState.ABANDONED, LeaderJobState.EXPIRED]
    assert not any(LEADER_JOB_MOVES[state] for state in ended)
