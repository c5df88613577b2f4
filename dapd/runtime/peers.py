"""The other Aggregators: how many exchanges each may have, and when it is left alone (rule E1).

A peer that can't be reached backs off as a whole, with one probe at a time, so that one
black-holed Helper delays nobody else. It goes by the time elapsed: setting the clock back prolongs
no back-off. An operator's pause holds until it is ended, at the latest with the process: what
nobody remembers must not stop aggregation for ever.
"""

from __future__ import annotations

from collections.abc import Callable

from dapd.protocol.retry import backoff_ms
from dapd.runtime.clock import Clock


class Peer:
    """One endpoint. Permits also bound how many of its bodies are in memory."""

    def __init__(self, permits: int, clock: Clock, jitter: Callable[[], float]) -> None:
        self.permits = permits
        self._clock = clock
        self._jitter = jitter
        self._taken = 0
        self.failures = 0
        self.paused = False
        self._blocked_until = clock.elapsed()
        self._down_since: int | None = None

    @property
    def exchanges(self) -> int:
        """How many are under way."""
        return self._taken

    @property
    def down_for(self) -> int | None:
        """How long, in ms, every answer or none has said that nobody serves; ``None``: it serves.

        A proxy that answers 502 can be reached, and its Aggregator is down none the less.
        """
        return None if self._down_since is None else self._clock.elapsed() - self._down_since

    @property
    def blocked_for(self) -> int:
        """How much longer, in ms, the peer is left alone; not above 0: no longer."""
        return self._blocked_until - self._clock.elapsed()

    @property
    def free(self) -> int:
        """Exchanges that may start now; one probe while the peer fails."""
        if self.paused or self.blocked_for > 0:
            return 0
        return (1 if self.failures else self.permits) - self._taken

    def try_acquire(self) -> bool:
        if self.free <= 0:
            return False
        self._taken += 1
        return True

    def release(self) -> None:
        self._taken -= 1

    def answered(self, *, serves: bool) -> None:
        """Go on with it; ``serves`` is false after an answer such as 503."""
        self.failures = 0
        self._blocked_until = self._clock.elapsed()
        if serves:
            self._down_since = None
        else:
            self._note_down()

    def unreachable(self, minimum: float, maximum: float) -> None:
        """A transport error: leave the peer alone for a while, in seconds, then probe it."""
        self._note_down()
        self.failures += 1
        wait = backoff_ms(self.failures, minimum, maximum, self._jitter())
        self._blocked_until = self._clock.elapsed() + wait

    def _note_down(self) -> None:
        if self._down_since is None:
            self._down_since = self._clock.elapsed()


class Peers:
    """Every peer that was met, by its endpoint."""

    def __init__(self, permits: int, clock: Clock, jitter: Callable[[], float]) -> None:
        self._means = (permits, clock, jitter)
        self._peers: dict[str, Peer] = {}

    def at(self, endpoint: str) -> Peer:
        if endpoint not in self._peers:
            self._peers[endpoint] = Peer(*self._means)
        return self._peers[endpoint]

    def set_permits(self, permits: int) -> None:
        """From now on each has so many; exchanges above that end as they are."""
        self._means = (permits, *self._means[1:])
        for peer in self._peers.values():
            peer.permits = permits

    def next_unblocked(self, now: int) -> int | None:
        """When the first of the peers that are left alone may be probed, in ms."""
        waits = [peer.blocked_for for peer in self._peers.values() if peer.blocked_for > 0]
        return now + min(waits) if waits else None
