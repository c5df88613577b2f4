"""One step of one leased job: its lease, the computing slots, its peer's permit (rule E1)."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass

import trio

from dapd.datastore.leases import Lease
from dapd.http import Outcome, Unknown
from dapd.protocol.task import Task
from dapd.runtime.context import Context
from dapd.runtime.peers import Peer


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

    def note_peer(self, context: Context, outcome: Outcome) -> None:
        """A peer that can't be reached is left alone as a whole (rule E1)."""
        endpoint = self.task.configuration.helper_aggregator_endpoint
        called = _called(outcome)
        context.metrics.peer_requests.labels(endpoint, called).inc()
        if called == "unreachable":
            limits = context.config.leader
            self.peer.unreachable(limits.retry_min, limits.retry_max)
        else:
            self.peer.answered(serves=called != "unserved")


def _called(outcome: Outcome) -> str:
    """What metrics call it."""
    match outcome:
        case Unknown(status=None):
            return "unreachable"
        case Unknown(unserved=True):
            return "unserved"
        case _:
            return type(outcome).__name__.lower()


RunStep = Callable[[Context, Step], Awaitable[None]]
"""Take a leased job one step further and commit it; the commit ends or releases the lease."""
