"""``dapd clock``: show the clock by which data expires, and confirm that it is correct."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING

import click

from dapd.cli.output import AS_JSON, load_config, tell
from dapd.wording import exact_moment

if TYPE_CHECKING:
    from datetime import datetime

    from dapd.admin.clock import ClockView
    from dapd.config import Config
    from dapd.datastore import Datastore
    from dapd.datastore.safe_clock import StoredClock


@click.group()
def clock() -> None:
    """Show or confirm the clock by which data expires.

    Reports expire and keys rotate by this clock. It follows this machine's clock, but is held when
    that one is in doubt: after a jump, after a long stop, or when the peers' clocks differ. While
    it is held, nothing expires and nothing is lost.
    """


@clock.command("show")
@AS_JSON
@click.pass_obj
def show(config: Path | None, *, as_json: bool) -> None:
    """Show whether the clock is held, and why.

    \b
    Example:
      dapd clock show
    """
    from dapd.admin.clock import SHOW
    from dapd.admin.operation import Nothing
    from dapd.cli.daemon import ask
    from dapd.datastore import safe_clock

    loaded = load_config(config)
    found = ask(
        loaded, SHOW, Nothing(),
        lambda datastore: at_next_start(loaded, datastore.read_sync(safe_clock.load_all)),
    )  # fmt: skip
    tell(found, _lines(found), as_json=as_json)


@clock.command("accept")
@click.pass_obj
def accept(config: Path | None) -> None:
    """Confirm that this machine's clock is correct.

    dapd follows it again from then on. Check the machine's clock first: everything that is past its
    expiry age by this clock expires, for good. Peers whose clocks differ are ignored until they
    agree again.

    \b
    Example:
      timedatectl && dapd clock accept
    """
    from dapd.admin.clock import ACCEPT
    from dapd.admin.operation import Nothing
    from dapd.cli.daemon import ask

    accepted = ask(load_config(config), ACCEPT, Nothing(), _accept_alone)
    click.echo(f"Accepted: {_text(accepted.now)}.")


def at_next_start(config: Config, stored: StoredClock | None) -> ClockView:
    """Return the clock as a daemon that starts now would see it."""
    from dapd.admin.clock import view
    from dapd.runtime.clock import SafeClock, SystemClock

    return view(SafeClock(SystemClock(), stored, int(config.clock.longest_stop * 1000)).look())


def _accept_alone(datastore: Datastore) -> ClockView:
    from dapd.admin.clock import view
    from dapd.datastore import safe_clock
    from dapd.runtime.clock import ClockState

    now = time.time_ns() // 1_000_000
    accepted = safe_clock.StoredClock(now)
    datastore.run_sync(safe_clock.store, accepted)
    return view(ClockState(now, now, None, {}, accepted))


def _lines(found: ClockView) -> list[str]:
    if found.held is None:
        head = ["dapd follows this machine's clock; there is nothing to do."]
    else:
        head = [
            f"The clock is held: {found.held}.",
            "Nothing expires and no key rotates. Correct this machine's clock; if it is correct:",
            "  dapd --config FILE clock accept",
        ]
    peers = [f"{each.origin:20} {_offset(each.ahead)}" for each in found.peers]
    return [
        *head,
        "",
        f"{'this machine':20} {_text(found.now)}",
        f"{'safe time':20} {_text(found.safe)}",
        *peers,
    ]


def _offset(ahead: float) -> str:
    side = "ahead of" if ahead >= 0 else "behind"
    return f"{abs(ahead):.1f} s {side} this machine"


def _text(at: datetime) -> str:
    return exact_moment(at)
