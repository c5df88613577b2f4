"""What a step of a leased job holds: its lease, the computing slots, its peer's permit (E1)."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace

import structlog
import trio

from dapd.advice.peer import likely_cause
from dapd.datastore.leases import Lease
from dapd.protocol.exchange import Later, Moment, Standing, Unusable, Verdict, judge
from dapd.protocol.outcome import Outcome, Processing, Refused, Unknown
from dapd.protocol.task import Task
from dapd.runtime.context import Context
from dapd.runtime.peers import Peer
from dapd.wording import duration

_log = structlog.get_logger()


@dataclass
class Step:
    """A leased job and what its step needs.

    A step computes and commits inside ``async with step.slots``, and exchanges outside, under a
    permit. The dispatcher takes the permit for a job whose state needs one; a step that goes on to
    its exchange takes it with ``try_permit``. The dispatcher gives it back when the step ends.
    ``served_since`` is the safe time (ms) since which the task's jobs were not at rest.
    """

    lease: Lease
    task: Task
    slots: trio.CapacityLimiter
    peer: Peer
    has_permit: bool = False
    served_since: int = 0

    def try_permit(self) -> bool:
        """Take a permit unless the step has one. Return whether it has one now."""
        self.has_permit = self.has_permit or self.peer.try_acquire()
        return self.has_permit

    def judge(self, context: Context, standing: Standing, outcome: Outcome | Unusable) -> Verdict:
        """Return what comes next for the job; update its peer's state, and log a wait."""
        if not isinstance(outcome, Unusable):
            self._note_peer(context, outcome)
        now = moment(context)
        last, since = standing.refusals.last, max(self.peer.asked_since, self.served_since)
        if last is not None and last < since <= now.safe:  # D4: it was not asked all the time
            standing = replace(standing, refusals=standing.refusals.interrupted())
        verdict = judge(standing, outcome, now)
        if isinstance(verdict, Later):
            left = 1000 * now.give_up_after[standing.kind] - verdict.refusals.ms
            _log_wait(standing, outcome, verdict, int(left))
        return verdict

    def _note_peer(self, context: Context, outcome: Outcome) -> None:
        """Count the outcome. Let a peer that can't be reached back off as a whole (rule E1)."""
        endpoint = self.task.configuration.helper_aggregator_endpoint
        label = _label(outcome)
        context.metrics.peer_requests.labels(endpoint, label).inc()
        if label == "unreachable":
            limits = context.config.leader
            self.peer.unreachable(limits.retry_min, limits.retry_max)
            self.peer.asked_since = context.instant().safe
        else:
            self.peer.answered(serves=label != "unserved")


def moment(context: Context) -> Moment:
    """Return the present time with the configured waits."""
    limits, at = context.config.leader, context.instant()
    return Moment(
        now=at.now,
        safe=at.safe,
        retry_min=limits.retry_min,
        retry_max=limits.retry_max,
        poll_min=limits.poll_min,
        poll_max=limits.poll_max,
        give_up_after=context.config.give_up_after,
        jitter=context.jitter(),
    )


def likely_cause_of(outcome: Outcome | Unusable) -> str:
    """Return what an operator should check after this answer."""
    if isinstance(outcome, Refused):
        return likely_cause(outcome.status, outcome.type)
    return likely_cause(None, None)


def _log_wait(standing: Standing, outcome: Outcome | Unusable, later: Later, left: int) -> None:
    """Log why the job waits; ``left`` is for how much longer (ms) the peer may refuse it."""
    if isinstance(outcome, Processing):
        _log.debug("job_processing", retry_after=outcome.retry_after)
    elif later.alarm:
        _log.error(
            "job_waits",
            sends=standing.sends,
            error=later.error,
            likely_cause=likely_cause_of(outcome),
            given_up_after=duration(left),
            remedy="fix this with the Helper's operator, then run `dapd jobs retry`; until dapd "
            "gives the job up, nothing is lost",
        )
    elif isinstance(outcome, Unknown):
        _log.warning("exchange_failed", status=outcome.status, error=outcome.reason)


def _label(outcome: Outcome) -> str:
    """Return the metric's label for the outcome."""
    match outcome:
        case Unknown(status=None):
            return "unreachable"
        case Unknown(unserved=True):
            return "unserved"
        case _:
            return type(outcome).__name__.lower()


RunStep = Callable[[Context, Step], Awaitable[None]]
"""Takes a leased job a step further; the step's commit ends or releases the lease."""
