"""What a Leader makes of an answer to an aggregation job: final or not, and when to go on.

Sections "Leader Initialization", "Asynchronous Request Handling"; rules D4, D5, E1, I4. Left out:
the exchange itself (``dapd.http``).
"""

from __future__ import annotations

from dataclasses import dataclass

from dapd.messages.aggregation import AggregationJobInitHead, leader_selected_batch_id_extension
from dapd.protocol.retry import backoff_ms
from dapd.protocol.states import LeaderJobState

_LONG = 4
"""Doublings ahead, where trying again soon would not help: a configuration must change first."""
_BUSY = (429, 503)
_COME_AGAIN = (408, 425)


@dataclass(frozen=True, slots=True)
class Standing:
    """A job before its exchange; ``attempts`` are those that failed since the last success."""

    state: LeaderJobState
    attempts: int
    sends: int
    location: str | None = None


@dataclass(frozen=True, slots=True)
class Later:
    """How a job goes on: its state, when (ms), and what it knows by then.

    ``sends`` are those whose outcome is not settled: a final refusal settles them (rule D4).
    """

    state: LeaderJobState
    run_at: int
    attempts: int
    sends: int
    location: str | None = None
    error: str | None = None


@dataclass(frozen=True, slots=True)
class Moment:
    """Now (ms), and how long to wait from now on, in seconds; ``jitter`` is in [0, 1)."""

    now: int
    minimum: float
    maximum: float
    poll_min: float
    poll_max: float
    jitter: float

    def backoff(self, attempt: int) -> int:
        return self.now + backoff_ms(attempt, self.minimum, self.maximum, self.jitter)

    def as_told(self, retry_after: float, shortest: float, longest: float) -> int:
        return self.now + int(1000 * min(max(retry_after, shortest), longest))


def init_request(verification_key_id: int, batch_id: bytes, verify_inits: bytes) -> bytes:
    """The ``AggregationJobInitReq``; ``batch_id`` is empty in the time-interval mode."""
    extensions = (leader_selected_batch_id_extension(batch_id),) if batch_id else ()
    head = AggregationJobInitHead(verification_key_id, b"", extensions)
    return head.encode() + verify_inits


def refusal_is_final(status: int, type: str | None, sends: int) -> bool:
    """Whether the Helper has judged these bytes and can't have stored them before (rule D4)."""
    return sends == 1 and (status == 413 or type == "invalidMessage")


def processing(
    standing: Standing, location: str, retry_after: float | None, moment: Moment
) -> Later:
    """The Helper works on it: poll as it says, or ever more slowly (I5)."""
    if retry_after is not None:
        run_at = moment.as_told(retry_after, moment.poll_min, moment.poll_max)
        return Later(LeaderJobState.POLLING, run_at, 0, standing.sends, location)
    polls = (standing.attempts if standing.state is LeaderJobState.POLLING else 0) + 1
    run_at = min(moment.backoff(polls), moment.now + int(1000 * moment.poll_max))
    return Later(LeaderJobState.POLLING, run_at, polls, standing.sends, location)


def unknown(
    standing: Standing, status: int | None, retry_after: float | None, reason: str, moment: Moment
) -> Later:
    """Nothing that can be believed: the stored bytes go out again, or the poll is repeated (I4)."""
    attempts = standing.attempts
    if status in _BUSY:  # E1: the exponent doesn't grow
        run_at = (
            moment.backoff(max(attempts, 1))
            if retry_after is None
            else moment.as_told(retry_after, moment.minimum, moment.maximum)
        )
    else:
        attempts += 1
        run_at = moment.backoff(attempts)
    if standing.state is LeaderJobState.POLLING and _may_poll_again(status):
        return Later(
            LeaderJobState.POLLING, run_at, attempts, standing.sends, standing.location, reason
        )
    return Later(LeaderJobState.STORED, run_at, attempts, standing.sends, error=reason)


def misfit(standing: Standing, reason: str, moment: Moment) -> Later:
    """An answer that can't be right, or a refusal that isn't final: the same bytes, much later."""
    attempts = standing.attempts + 1
    run_at = moment.backoff(attempts + _LONG)
    return Later(LeaderJobState.STORED, run_at, attempts, standing.sends, error=reason)


def settled(standing: Standing, reason: str, moment: Moment) -> Later:
    """Refused for good by a Helper that has never accepted a job of this task (rule D5).

    The fault may be the pair's configuration, so the job waits. It is known not to be stored there,
    so its next send is its first again.
    """
    attempts = standing.attempts + 1
    return Later(LeaderJobState.STORED, moment.backoff(attempts + _LONG), attempts, 0, error=reason)


def likely_cause(status: int | None, type: str | None) -> str:
    """For the alarm: what an operator should look at."""
    match status, type:
        case ((401 | 403), _):
            return "the aggregator token of this task differs from the Helper's"
        case _, "unrecognizedTask":
            return "the Helper doesn't know the task; add it there, or its endpoint is another's"
        case _, "unrecognizedAggregationJob":
            return "the Helper has lost the job's state; the job is sent again"
        case _, "stepMismatch" | "unsupportedExtension" | "invalidAggregationParameter":
            return "the Helper's software or task configuration doesn't match; compare both sides"
        case _, "invalidMessage":
            return (
                "the Helper can't use this job, but may have accepted it before; compare both sides"
            )
        case 404 | 405, _:
            return "helper_aggregator_endpoint leads to no DAP Helper, or a proxy hides it"
        case 413, _:
            return "the Helper or a proxy limits bodies; lower [leader] max_job_size"
        case 415, _:
            return "the Helper speaks another version of DAP"
        case _:
            return "the Helper or a proxy before it is at fault; see its logs"


def _may_poll_again(status: int | None) -> bool:
    """Whether the Location may still be right; else the job is sent again (rule D4)."""
    return status is None or status >= 500 or status in _BUSY or status in _COME_AGAIN
