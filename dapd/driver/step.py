"""One step of one leased job: its lease, the computing slots, its peer's permit (rule E1)."""

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

    Computing and committing happen inside ``async with step.slots``, exchanges outside, under a
    permit: the dispatcher has taken one for a job whose state needs it, a step that goes on to its
    exchange takes one with ``try_permit``. The dispatcher gives it back when the step ends.
    """

    lease: Lease
    task: Task
    slots: trio.CapacityLimiter
    peer: Peer
    has_permit: bool = False

    def try_permit(self) -> bool:
        self.has_permit = self.has_permit or self.peer.try_acquire()
        return self.has_permit

    def judge(
        self, context: Context, standing: Standing, outcome: Outcome | Unusable
    ) -> Ready | Refused | Later:
        """What comes next for the job; its peer's state and the log follow the outcome."""
        if not isinstance(outcome, Unusable):
            self._note_peer(context, outcome)
        following = judge(standing, outcome, moment(context))
        if isinstance(following, Later):
            _log_wait(standing, outcome, following)
        return following

    def _note_peer(self, context: Context, outcome: Outcome) -> None:
        """Leave a peer alone as a whole that can't be reached (rule E1)."""
        endpoint = self.task.configuration.helper_aggregator_endpoint
        called = _called(outcome)
        context.metrics.peer_requests.labels(endpoint, called).inc()
        if called == "unreachable":
            limits = context.config.leader
            self.peer.unreachable(limits.retry_min, limits.retry_max)
        else:
            self.peer.answered(serves=called != "unserved")


def moment(context: Context) -> Moment:
    """Now, and the configured waits."""
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
            remedy="fix that with the Helper's operator, then `dapd jobs retry`; nothing is lost",
        )
    elif isinstance(outcome, Unknown):
        _log.warning("exchange_failed", status=outcome.status, error=outcome.reason)


def _called(outcome: Outcome) -> str:
    """The metrics' name of the outcome."""
    match outcome:
        case Unknown(status=None):
            return "unreachable"
        case Unknown(unserved=True):
            return "unserved"
        case _:
            return type(outcome).__name__.lower()


RunStep = Callable[[Context, Step], Awaitable[None]]
"""Take a leased job one step further and commit it; the commit ends or releases the lease."""
