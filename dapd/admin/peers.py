"""The peers' operations: list, show, pause, resume, probe.

A peer is a Helper to which this Leader sends requests; a Helper sends none. A pause is kept in
memory only, so it ends with the process.
"""

from __future__ import annotations

import time
from typing import Literal

import msgspec

from dapd.admin.operation import Nothing, Operation
from dapd.errors import DecodeError, UsageError
from dapd.http import Ready, Refused, Unknown, resource_url
from dapd.messages.common import HpkeConfigList, MediaType
from dapd.runtime.context import Context
from dapd.runtime.peers import Peer


class PeerView(msgspec.Struct, frozen=True):
    """One peer. Durations are in seconds.

    ``state`` is ``ok``, ``failing`` (the last requests got no answer), ``refusing`` (it answers,
    but with errors such as 503) or ``paused``. ``failures`` counts the requests in a row without an
    answer. ``down_seconds`` is how long it has served nothing, ``null`` if it serves, and
    ``retried_in_seconds`` when dapd tries a failing peer next. ``exchanges`` counts the requests
    under way, of at most ``permits``. ``tasks`` counts the served tasks that use this peer.
    """

    endpoint: str
    state: Literal["ok", "failing", "refusing", "paused"]
    failures: int
    down_seconds: float | None
    retried_in_seconds: float | None
    exchanges: int
    permits: int
    tasks: int


class PeerList(msgspec.Struct, frozen=True):
    """All peers, sorted by endpoint."""

    peers: tuple[PeerView, ...]


class PeerRequest(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One peer; ``url`` is its endpoint as in tasks, or the beginning of only this one."""

    url: str


class ProbeView(msgspec.Struct, frozen=True):
    """The result of a GET of the peer's ``hpke_config``.

    ``ok`` if the answer was a list of HPKE configurations; ``keys`` counts them. ``status`` is the
    answer's HTTP status, ``null`` if TLS or the connection failed. ``peer`` is its state
    afterwards: any answer ends its back-off.
    """

    url: str
    ok: bool
    milliseconds: float
    status: int | None
    detail: str
    keys: int
    peer: PeerView


def all_peers(context: Context) -> tuple[PeerView, ...]:
    """Return the peers of all served tasks, sorted by endpoint."""
    return tuple(peer_view(context, each) for each in sorted(context.tasks.helpers()))


def peer_view(context: Context, endpoint: str) -> PeerView:
    """Return the peer's state now."""
    peer = context.peers.at(endpoint)
    down, blocked = peer.down_for, peer.blocked_for
    return PeerView(
        endpoint,
        _state(peer),
        peer.failures,
        None if down is None else down / 1000,
        max(blocked, 0) / 1000 if peer.failures else None,
        peer.exchanges,
        peer.permits,
        context.tasks.helpers()[endpoint],
    )


def _state(peer: Peer) -> Literal["ok", "failing", "refusing", "paused"]:
    if peer.paused:
        return "paused"
    if peer.failures:
        return "failing"
    return "ok" if peer.down_for is None else "refusing"


async def list_peers(context: Context, _: Nothing) -> PeerList:
    """List the Helpers to which this Leader sends requests."""
    await context.tasks.refresh()
    return PeerList(all_peers(context))


async def show(context: Context, request: PeerRequest) -> PeerView:
    """Show one peer. Raises ``UsageError`` if none or several match."""
    return peer_view(context, await _named(context, request.url))


async def pause(context: Context, request: PeerRequest) -> PeerView:
    """Send no new request to this peer until ``resume``, or until the daemon stops."""
    endpoint = await _named(context, request.url)
    context.peers.at(endpoint).paused = True
    return peer_view(context, endpoint)


async def resume(context: Context, request: PeerRequest) -> PeerView:
    """End a pause; jobs that wait for the peer go on."""
    endpoint = await _named(context, request.url)
    peer = context.peers.at(endpoint)
    peer.paused, peer.asked_since = False, context.instant().safe
    context.jobs.ring()
    return peer_view(context, endpoint)


async def probe(context: Context, request: PeerRequest) -> ProbeView:
    """Ask a peer for its ``hpke_config`` now, also while it is paused or backed off."""
    endpoint = await _named(context, request.url)
    url = resource_url(endpoint, "hpke_config")
    began = time.perf_counter()
    outcome = await context.http.get(url, MediaType.HPKE_CONFIG_LIST)
    milliseconds = round(1000 * (time.perf_counter() - began), 1)
    peer: Peer = context.peers.at(endpoint)
    # A peer that answers can be reached, and its back-off is about nothing else (E1).
    if not (isinstance(outcome, Unknown) and outcome.status is None):
        peer.answered(serves=not isinstance(outcome, Unknown) or not outcome.unserved)
        context.jobs.ring()
    status, detail, keys = _judged(outcome)
    view = peer_view(context, endpoint)
    return ProbeView(url, keys > 0, milliseconds, status, detail, keys, view)


def _judged(outcome: Ready | Refused | Unknown) -> tuple[int | None, str, int]:
    """Return the status, what it means, and the number of keys."""
    match outcome:
        case Ready(body):
            try:
                keys = len(HpkeConfigList.decode(body).configs)
            except DecodeError as error:
                return 200, f"the answer is not an HpkeConfigList: {error}", 0
            return 200, "answered" if keys else "the peer offers no HPKE key", keys
        case Refused(status, reason=reason):
            return status, reason, 0
        case Unknown(reason, status):
            return status, reason, 0


async def _named(context: Context, url: str) -> str:
    await context.tasks.refresh()  # E5: a command may have added its task a moment ago
    known = context.tasks.helpers()
    if url in known:
        return url
    found = [each for each in known if url and each.startswith(url)]
    if len(found) != 1:
        what = f"{len(found)} peers begin" if found else "no peer begins"
        raise UsageError(f"{what} with {url}; `dapd peer list` shows them")
    return found[0]


LIST = Operation("peer_list", "GET", "/api/v1/peers", Nothing, PeerList, list_peers)
SHOW = Operation("peer_show", "GET", "/api/v1/peer", PeerRequest, PeerView, show)
PAUSE = Operation("peer_pause", "POST", "/api/v1/peer/pause", PeerRequest, PeerView, pause)
RESUME = Operation("peer_resume", "POST", "/api/v1/peer/resume", PeerRequest, PeerView, resume)
PROBE = Operation("peer_probe", "POST", "/api/v1/peer/probe", PeerRequest, ProbeView, probe)
