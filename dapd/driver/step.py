"""What a step of a leased job holds: its lease, the computing slots, its peer's permit (E1)."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass

import structlog
import trio

from dapd.advice.peer import likely_cause
from dapd.datastore.leases import Lease
from dapd.protocol.exchange import Later, Moment, Standing, Unusable, judge
from dapd.protocol.outcome import Outcome, Processing, Ready, Refused, Unknown
from dapd.protocol.task import Task
from dapd.runtime.context import Context
from dapd.runtime.peers import Peer

_log = structlog.get_logger()


@dataclass
class Step:
    """A leased job and what its step needs.

    A step computes and commits inside ``async with step.slots``, and exchanges outside, under a
    permit. The dispatcher takes the permit for a job whose state needs one; a step that goes on to
    its exchange takes it with ``try_permit``. The dispatcher gives it back when the step ends.
    """

    lease: Lease
    task: Task
    slots: trio.CapacityLimiter
    peer: Peer
    has_permit: bool = False

    def try_permit(self) -> bool:
        """Take a permit unless the step has one. Return whether it has one now."""
        self.has_permit = self.has_permit or self.peer.try_acquire()
        return self.has_permit

    def judge(
        self, context: Context, standing: Standing, outcome: Outcome | Unusable
    ) -> Ready | Refused | Later:
        """Return what comes next for the job; update its peer's state, and log a wait."""
        if not isinstance(outcome, Unusable):
            self._note_peer(context, outcome)
        verdict = judge(standing, outcome, moment(context))
        if isinstance(verdict, Later):
            _log_wait(standing, outcome, verdict)
        return verdict

    def _note_peer(self, context: Context, outcome: Outcome) -> None:
        """Count the outcome. Let a peer that can't be reached back off as a whole (rule E1)."""
        endpoint = self.task.configuration.helper_aggregator_endpoint
        label = _label(outcome)
        context.metrics.peer_requests.labels(endpoint, label).inc()
        if label == "unreachable":
            limits = context.config.leader
            self.peer.unreachable(limits.retry_min, limits.retry_max)
        else:
            self.peer.answered(serves=label != "unserved")


def moment(context: Context) -> Moment:
    """Return the present time with the configured waits."""
    limits = context.config.leader
    return Moment(
        now=context.now(),
        retry_min=limits.retry_min,
        retry_max=limits.retry_max,
        poll_min=limits.poll_min,
        poll_max=limits.poll_max,
        jitter=context.jitter(),
    )


def _log_wait(standing: Standing, outcome: Outcome | Unusable, later: Later) -> None:
    if isinstance(outcome, Processing):
        _log.debug("job_processing", retry_after=outcome.retry_after)
    elif later.alarm:
        status, type_ = (
            (outcome.status, outcome.type) if isinstance(outcome, Refused) else (None, None)
        )
        _log.error(
            "job_waits",
            sends=standing.sends,
            error=later.error,
            likely_cause=likely_cause(status, type_),
            remedy="fix this with the Helper's operator, then run `dapd jobs retry`; no report is "
            "lost meanwhile",
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
