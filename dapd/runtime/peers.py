"""The Helpers that the Leader calls: how many exchanges each may have, and when it backs off (E1).

After a transport error all exchanges with that peer wait, then one at a time probes it, so that a
Helper that can't be reached delays no other. Back-off goes by elapsed time: setting the clock back
doesn't prolong it. An operator's pause lasts until it is ended, and at most as long as the process:
a pause that everyone has forgotten must not stop aggregation for ever.
"""

from __future__ import annotations

from collections.abc import Callable

from dapd.protocol.retry import backoff_ms
from dapd.runtime.clock import Clock


class Peer:
    """One Helper, by its endpoint. Its permits also bound how many of its bodies are in memory."""

    def __init__(self, permits: int, clock: Clock, jitter: Callable[[], float]) -> None:
        self.permits = permits
        self._clock = clock
        self._jitter = jitter
        self._taken = 0
        self.failures = 0
        self.paused = False
        self.asked_since = 0
        """The safe time (ms) since which the peer was neither unreachable nor paused: only from
        then on its refusals in a row count (rule D4).
        """
        self._blocked_until = clock.elapsed()
        self._down_since: int | None = None

    @property
    def exchanges(self) -> int:
        """How many exchanges are under way."""
        return self._taken

    @property
    def down_for(self) -> int | None:
        """For how long (ms) the peer has not served; ``None`` if it serves.

        Unlike ``failures``, this counts answers such as a proxy's 502: the proxy can be reached,
        but its Aggregator is down.
        """
        return None if self._down_since is None else self._clock.elapsed() - self._down_since

    @property
    def blocked_for(self) -> int:
        """How much longer (ms) the peer backs off; 0 or less if it doesn't."""
        return self._blocked_until - self._clock.elapsed()

    @property
    def free(self) -> int:
        """How many exchanges may start now: one at a time, as a probe, after a transport error."""
        if self.paused or self.blocked_for > 0:
            return 0
        return (1 if self.failures else self.permits) - self._taken

    def try_acquire(self) -> bool:
        """Take a permit if one is free. Return whether it was."""
        if self.free <= 0:
            return False
        self._taken += 1
        return True

    def release(self) -> None:
        """Give a permit back."""
        self._taken -= 1

    def answered(self, *, serves: bool) -> None:
        """End the back-off; ``serves`` is false after an answer such as 503."""
        self.failures = 0
        self._blocked_until = self._clock.elapsed()
        if serves:
            self._down_since = None
        else:
            self._note_down()

    def unreachable(self, minimum: float, maximum: float) -> None:
        """Back off after a transport error, between ``minimum`` and ``maximum`` seconds."""
        self._note_down()
        self.failures += 1
        wait = backoff_ms(self.failures, minimum, maximum, self._jitter())
        self._blocked_until = self._clock.elapsed() + wait

    def _note_down(self) -> None:
        if self._down_since is None:
            self._down_since = self._clock.elapsed()


class Peers:
    """Every peer that the Leader has called, by its endpoint."""

    def __init__(self, permits: int, clock: Clock, jitter: Callable[[], float]) -> None:
        self._peer_args = (permits, clock, jitter)
        self._peers: dict[str, Peer] = {}

    def at(self, endpoint: str) -> Peer:
        """Return the peer at this endpoint."""
        if endpoint not in self._peers:
            self._peers[endpoint] = Peer(*self._peer_args)
        return self._peers[endpoint]

    def free(self) -> dict[str, int]:
        """Return how many exchanges may start now with each peer that was called, by endpoint."""
        return {endpoint: peer.free for endpoint, peer in self._peers.items()}

    def set_permits(self, permits: int) -> None:
        """Give each peer so many permits; exchanges beyond them end undisturbed."""
        self._peer_args = (permits, *self._peer_args[1:])
        for peer in self._peers.values():
            peer.permits = permits

    def next_unblocked(self, now: int) -> int | None:
        """Return when (ms) the first back-off of a peer ends; ``None`` if no peer backs off."""
        waits = [peer.blocked_for for peer in self._peers.values() if peer.blocked_for > 0]
        return now + min(waits) if waits else None
