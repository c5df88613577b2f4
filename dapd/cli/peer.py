"""``dapd peer``: the Helpers to which the running Leader sends requests."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from dapd.cli.output import AS_JSON, load_config, tell

if TYPE_CHECKING:
    from dapd.admin.operation import Operation
    from dapd.admin.peers import PeerRequest, PeerView

_URL = click.argument("url", metavar="URL")


@click.group()
def peer() -> None:
    """The Helpers to which a running Leader sends requests.

    URL is the peer's endpoint as tasks have it, or its beginning. A Helper sends no requests, and
    has no peers here.
    """


@peer.command("list")
@AS_JSON
@click.pass_obj
def list_peers(config: Path | None, *, as_json: bool) -> None:
    """The peers, a line each: reachable, failing since when, or paused.

    \b
    Example:
      dapd peer list
    """
    from dapd.admin.operation import Nothing
    from dapd.admin.peers import LIST
    from dapd.cli.daemon import call

    found = call(load_config(config), LIST, Nothing())
    lines = [line(each) for each in found.peers]
    nobody = "No peer: a Helper sends no requests, and a Leader without a task none yet."
    tell(found, lines or [nobody], as_json=as_json)


@peer.command("show")
@_URL
@AS_JSON
@click.pass_obj
def show(config: Path | None, url: str, *, as_json: bool) -> None:
    """How one peer is.

    \b
    Example:
      dapd peer show https://helper.example/
    """
    from dapd.admin.peers import SHOW

    found = _ask(config, SHOW, url)
    lines = [
        line(found),
        f"{found.exchanges} of {found.permits} requests at once are under way.",
        f"{found.tasks} tasks need it.",
    ]
    tell(found, lines, as_json=as_json)


@peer.command("pause")
@_URL
@AS_JSON
@click.pass_obj
def pause(config: Path | None, url: str, *, as_json: bool) -> None:
    """Begin no request to a peer any more, such as while it is maintained.

    What is under way ends as usual. Uploads go on, and jobs wait. The pause ends with `resume`, or
    when the daemon stops: it is not remembered.

    \b
    Example:
      dapd peer pause https://helper.example/
    """
    from dapd.admin.peers import PAUSE

    found = _ask(config, PAUSE, url)
    lines = [
        f"{found.endpoint} is paused until the daemon stops, or until:",
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
    """Ask a peer for its HPKE configurations now, and say what came of it; exit 1 if nothing good.

    If it answers, it is waited for no longer. A job that failed before waits for its own time
    still, unless `dapd jobs retry` ends that.

    \b
    Example:
      dapd peer probe https://helper.example/
    """
    from dapd.admin.peers import PROBE, PeerRequest
    from dapd.cli.daemon import call

    found = call(load_config(config), PROBE, PeerRequest(url))
    if found.ok:
        lines = [f"{found.url}: good, {found.keys} HPKE keys in {found.milliseconds:.0f} ms."]
        if found.peer.state == "paused":
            lines.append(f"It is paused still: dapd peer resume {found.peer.endpoint}")
    else:
        lines = [
            f"{found.url}: failed after {found.milliseconds:.0f} ms: {found.detail}",
            "Look at its address, its certificate and what lies between.",
        ]
    tell(found, lines, as_json=as_json)
    if not found.ok:
        raise click.exceptions.Exit(1)


def line(view: PeerView) -> str:
    """One peer on a line."""
    from dapd.protocol.waiting import spell

    said: str = view.state
    if view.down_seconds is not None:
        said += f" for {spell(int(1000 * view.down_seconds))}"
    if view.retried_in_seconds is not None:
        again = spell(int(1000 * view.retried_in_seconds))
        said += f" ({view.failures} requests); tried again in {again}"
    return f"{view.endpoint}  {said}"


def _ask(config: Path | None, operation: Operation[PeerRequest, PeerView], url: str) -> PeerView:
    from dapd.admin.peers import PeerRequest
    from dapd.cli.daemon import call

    return call(load_config(config), operation, PeerRequest(url))
