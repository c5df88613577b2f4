"""``dapd peer``: list, show, pause, resume and probe the running Leader's Helpers."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from dapd.cli.output import AS_JSON, load_config, tell
from dapd.wording import count, duration

if TYPE_CHECKING:
    from dapd.admin.operation import Operation
    from dapd.admin.peers import PeerRequest, PeerView

_URL = click.argument("url", metavar="URL")


@click.group()
def peer() -> None:
    """The Helpers to which a running Leader sends requests.

    URL is a peer's endpoint as in tasks, or its beginning. A Helper sends no requests, so it has no
    peers.
    """


@peer.command("list")
@AS_JSON
@click.pass_obj
def list_peers(config: Path | None, *, as_json: bool) -> None:
    """List the peers: ok, failing and for how long, or paused.

    \b
    Example:
      dapd peer list
    """
    from dapd.admin.operation import Nothing
    from dapd.admin.peers import LIST
    from dapd.cli.daemon import call

    found = call(load_config(config), LIST, Nothing())
    lines = [line(each) for each in found.peers]
    nobody = "No peers: only a Leader with tasks sends requests."
    tell(found, lines or [nobody], as_json=as_json)


@peer.command("show")
@_URL
@AS_JSON
@click.pass_obj
def show(config: Path | None, url: str, *, as_json: bool) -> None:
    """Show the state of one peer.

    \b
    Example:
      dapd peer show https://helper.example/
    """
    from dapd.admin.peers import SHOW

    found = _ask(config, SHOW, url)
    lines = [
        line(found),
        f"Requests under way: {found.exchanges} of at most {found.permits}.",
        f"Tasks that use it: {found.tasks}.",
    ]
    tell(found, lines, as_json=as_json)


@peer.command("pause")
@_URL
@AS_JSON
@click.pass_obj
def pause(config: Path | None, url: str, *, as_json: bool) -> None:
    """Send no new request to a peer, such as during its maintenance.

    Requests under way finish. Uploads go on, and jobs wait. The pause ends with `resume`, or when
    the daemon stops.

    \b
    Example:
      dapd peer pause https://helper.example/
    """
    from dapd.admin.peers import PAUSE

    found = _ask(config, PAUSE, url)
    lines = [
        f"{found.endpoint} is paused, until the daemon stops or you run:",
        f"  dapd peer resume {found.endpoint}",
    ]
    tell(found, lines, as_json=as_json)


@peer.command("resume")
@_URL
@AS_JSON
@click.pass_obj
def resume(config: Path | None, url: str, *, as_json: bool) -> None:
    """End a pause.

    \b
    Example:
      dapd peer resume https://helper.example/
    """
    from dapd.admin.peers import RESUME

    found = _ask(config, RESUME, url)
    tell(found, [line(found)], as_json=as_json)


@peer.command("probe")
@_URL
@AS_JSON
@click.pass_obj
def probe(config: Path | None, url: str, *, as_json: bool) -> None:
    """Ask a peer for its HPKE configurations now; exit 1 if it doesn't give any.

    Any answer ends the peer's back-off. A job that failed still waits until it is due, unless
    `dapd jobs retry` makes it due now.

    \b
    Example:
      dapd peer probe https://helper.example/
    """
    from dapd.admin.peers import PROBE, PeerRequest
    from dapd.cli.daemon import call

    found = call(load_config(config), PROBE, PeerRequest(url))
    if found.ok:
        lines = [
            f"{found.url}: good, {count(found.keys, 'HPKE key')} in {found.milliseconds:.0f} ms."
        ]
        if found.peer.state == "paused":
            lines.append(f"The peer is still paused: `dapd peer resume {found.peer.endpoint}`")
    else:
        lines = [
            f"{found.url}: failed after {found.milliseconds:.0f} ms: {found.detail}",
            "Check its address, its certificate, and the network in between.",
        ]
    tell(found, lines, as_json=as_json)
    if not found.ok:
        raise click.exceptions.Exit(1)


def line(view: PeerView) -> str:
    """Return one peer as a line."""
    said: str = view.state
    if view.down_seconds is not None:
        said += f" for {duration(int(1000 * view.down_seconds))}"
    if view.retried_in_seconds is not None:
        again = duration(int(1000 * view.retried_in_seconds))
        said += f" ({count(view.failures, 'failed request')}); dapd tries it again in {again}"
    return f"{view.endpoint}  {said}"


def _ask(config: Path | None, operation: Operation[PeerRequest, PeerView], url: str) -> PeerView:
    from dapd.admin.peers import PeerRequest
    from dapd.cli.daemon import call

    return call(load_config(config), operation, PeerRequest(url))
