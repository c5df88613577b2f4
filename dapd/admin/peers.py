"""The peers' operations: how each is, a pause that an operator wants, and a try right now.

A peer is a Helper to which this Leader sends requests; a Helper sends none. A pause is kept in
memory: it ends with the process at the latest.
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

    ``state`` is ``ok``, ``failing`` (its last requests got no answer), ``refusing`` (it answers,
    but as 503 does: nobody serves) or ``paused``. ``failures`` counts the requests in a row without
    an answer, ``down_seconds`` is how long it has served nobody (``null``: it does), and
    ``retried_in_seconds`` when one that fails is tried next. ``exchanges`` are under way, of
    ``permits`` that may be. ``tasks`` counts the served tasks that need it.
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
    """All peers, by their endpoints."""

    peers: tuple[PeerView, ...]


class PeerRequest(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """``url`` is the endpoint as tasks have it; its beginning does, if no other begins so."""

    url: str


class ProbeView(msgspec.Struct, frozen=True):
    """What a GET of the peer's ``hpke_config`` came to.

    ``ok`` if it was a list of HPKE configurations, of which there are ``keys``. ``status`` is the
    HTTP status of another answer, ``null`` if TLS or the connection failed. ``peer`` is its state
    afterwards: one that has answered is not waited for any more.
    """

    url: str
    ok: bool
    milliseconds: float
    status: int | None
    detail: str
    keys: int
    peer: PeerView


def all_peers(context: Context) -> tuple[PeerView, ...]:
    """The peers of all tasks that are served, by endpoint."""
    return tuple(peer_view(context, each) for each in sorted(context.tasks.helpers()))


def peer_view(context: Context, endpoint: str) -> PeerView:
    """How this peer is now."""
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
    """Every Helper to which this Leader sends requests."""
    await context.tasks.refresh()
    return PeerList(all_peers(context))


async def show(context: Context, request: PeerRequest) -> PeerView:
    """One peer. Raises ``UsageError`` if none or several begin so."""
    return peer_view(context, await _named(context, request.url))


async def pause(context: Context, request: PeerRequest) -> PeerView:
    """Begin no request to this peer until ``resume``, or until the daemon stops."""
    endpoint = await _named(context, request.url)
    context.peers.at(endpoint).paused = True
    return peer_view(context, endpoint)


async def resume(context: Context, request: PeerRequest) -> PeerView:
    """End a pause; what waits for the peer goes on."""
    endpoint = await _named(context, request.url)
    context.peers.at(endpoint).paused = False
    context.jobs.ring()
    return peer_view(context, endpoint)


async def probe(context: Context, request: PeerRequest) -> ProbeView:
    """Ask a peer for its ``hpke_config`` now, also one that is paused or waited for."""
    endpoint = await _named(context, request.url)
    url = resource_url(endpoint, "hpke_config")
    began = time.perf_counter()
    outcome = await context.http.get(url, MediaType.HPKE_CONFIG_LIST)
    milliseconds = round(1000 * (time.perf_counter() - began), 1)
    peer: Peer = context.peers.at(endpoint)
    # Whoever answers can be reached, and that is all that the back-off of a peer is about (E1).
    if not (isinstance(outcome, Unknown) and outcome.status is None):
        peer.answered(serves=not isinstance(outcome, Unknown) or not outcome.unserved)
        context.jobs.ring()
    status, detail, keys = _judged(outcome)
    view = peer_view(context, endpoint)
    return ProbeView(url, keys > 0, milliseconds, status, detail, keys, view)


def _judged(outcome: Ready | Refused | Unknown) -> tuple[int | None, str, int]:
    """Status, what it means, and how many keys it brought."""
    match outcome:
        case Ready(body):
            try:
                keys = len(HpkeConfigList.decode(body).configs)
            except DecodeError as error:
                return 200, f"an answer that is no HpkeConfigList: {error}", 0
            return 200, "answered" if keys else "it publishes no HPKE key", keys
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
        what = "no peer" if not found else f"{len(found)} peers"
        raise UsageError(f"{what} at {url}; `dapd peer list` shows them")
    return found[0]


LIST = Operation("peer_list", "GET", "/api/v1/peers", Nothing, PeerList, list_peers)
SHOW = Operation("peer_show", "GET", "/api/v1/peer", PeerRequest, PeerView, show)
PAUSE = Operation("peer_pause", "POST", "/api/v1/peer/pause", PeerRequest, PeerView, pause)
RESUME = Operation("peer_resume", "POST", "/api/v1/peer/resume", PeerRequest, PeerView, resume)
PROBE = Operation("peer_probe", "POST", "/api/v1/peer/probe", PeerRequest, ProbeView, probe)
