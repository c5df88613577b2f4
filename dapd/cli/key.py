"""``dapd key``: manage the HPKE keys that Clients encrypt reports to."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from dapd.cli.output import AS_JSON
from dapd.cli.store import command_store
from dapd.protocol.keys import SUITES
from dapd.wording import count

if TYPE_CHECKING:
    from dapd.config import Config
    from dapd.datastore import Datastore
    from dapd.protocol.keys import KeyTimes, StoredKey
    from dapd.protocol.task import Instant

_ID = click.IntRange(0, 255)
_FOLLOWS = "A running daemon applies this within a second."


@click.group()
def key() -> None:
    """Manage the HPKE keys that Clients encrypt reports to.

    The daemon rotates keys by itself: a key is pending, then active (published), then expired
    (it still decrypts reports), then deleted. [keys] in the configuration sets how long a key is
    pending and active. These commands work while the daemon runs, too.
    """


@key.command("list")
@AS_JSON
@click.pass_obj
def list_keys(config: Path | None, *, as_json: bool) -> None:
    """List the keys, each with its state and its next state.

    \b
    Example:
      dapd key list
    """
    from dapd.commits.hpke_keys import report_lifetimes
    from dapd.datastore import keys

    with command_store(config, "key") as (settings, datastore, _):
        stored = datastore.read_sync(keys.all_keys)
        times = _times(datastore, settings)
        lifetimes = datastore.read_sync(report_lifetimes)
    kept = [each for each in stored if each.state != "deleted"]
    described = [_description(each, stored, times) for each in kept]
    if as_json:
        click.echo(json.dumps(described, indent=2))
        return
    if not kept:
        click.echo("No keys yet; the daemon makes the first one when it starts.")
    for each in described:
        click.echo(
            f"{each['config_id']:3}  {each['suite']:15}  {each['state']:7}  "
            f"since {each['since']}  {_outlook(each)}"
        )
    never = [task for task, lifetime in lifetimes.items() if lifetime is None]
    if never and any(each.state == "expired" for each in kept):
        click.echo(
            f"Expired keys are kept for ever, because reports of task {never[0]} never expire; "
            "`dapd task set --report-expiry-age` changes that."
        )


@key.command("add")
@click.option(
    "--suite",
    type=click.Choice(list(SUITES)),
    default=next(iter(SUITES)),
    show_default=True,
    help="The key's HPKE algorithms.",
)
@click.option(
    "--active", is_flag=True, help="Publish the key at once, although no backup contains it yet."
)
@click.pass_obj
def add(config: Path | None, suite: str, *, active: bool) -> None:
    """Make a key now: before the rotation would, or of another suite.

    The key is pending for [keys] pending seconds, then replaces the active key of its suite. The
    first key of a suite is published beside those of the other suites, and rotated from then on.

    \b
    Example:
      dapd key add --suite p256-aes128
    """
    from dapd.commits import hpke_keys

    with command_store(config, "key") as (settings, datastore, sealer):
        now = _instant(datastore).later
        made = datastore.run_sync(
            hpke_keys.add, sealer, SUITES[suite], now, settings, active=active
        )
    click.echo(f"Made key {made.config_id} ({suite}), {made.to}. {_FOLLOWS}")
    if active:
        click.echo("Make a backup now: without the key, reports encrypted to it are lost.")


@key.command("promote")
@click.argument("config_id", metavar="ID", type=_ID)
@click.pass_obj
def promote(config: Path | None, config_id: int) -> None:
    """Publish pending key ID now; its suite's active key expires.

    \b
    Example:
      dapd key promote 4
    """
    from dapd.commits import hpke_keys

    with command_store(config, "key") as (settings, datastore, sealer):
        now = _instant(datastore).later
        moves = datastore.run_sync(hpke_keys.promote, sealer, config_id, now, settings)
    expired = " and ".join(f"key {move.config_id}" for move in moves[1:])
    click.echo(f"Key {config_id} is active{', ' + expired + ' expired' if expired else ''}.")
    click.echo(_FOLLOWS)


@key.command("expire")
@click.argument("config_id", metavar="ID", type=_ID)
@click.pass_obj
def expire(config: Path | None, config_id: int) -> None:
    """Stop publishing active key ID; it still decrypts reports.

    Use it to retire a suite: the last key of a suite is not replaced.

    \b
    Example:
      dapd key expire 3
    """
    from dapd.commits import hpke_keys

    with command_store(config, "key") as (settings, datastore, sealer):
        now = _instant(datastore).later
        datastore.run_sync(hpke_keys.expire, sealer, config_id, now, settings)
    click.echo(f"Key {config_id} is expired; it decrypts reports until it is deleted. {_FOLLOWS}")


@key.command("remove")
@click.argument("config_id", metavar="ID", type=_ID)
@click.option(
    "--compromised",
    is_flag=True,
    help="Others may know the key: destroy it at once, even if reports still need it.",
)
@click.pass_obj
def remove(config: Path | None, config_id: int, *, compromised: bool) -> None:
    """Destroy the private key of key ID, for good.

    Without --compromised, the key must be pending, or expired and no longer needed by any report.

    \b
    Example, if others may know key 3:
      dapd key add --active
      dapd key remove 3 --compromised
    """
    from dapd.commits import hpke_keys

    with command_store(config, "key") as (settings, datastore, _):
        waiting = _sealed_to(datastore, config_id) if compromised else 0
        datastore.run_sync(
            hpke_keys.remove,
            config_id,
            _instant(datastore),
            _times(datastore, settings),
            compromised=compromised,
        )
    click.echo(f"Destroyed key {config_id}. {_FOLLOWS}")
    if compromised:
        click.echo(f"Queued here, and lost with it: at most {count(waiting, 'report')}.")
        click.echo("Reports encrypted to the key that still arrive are rejected.")


def _times(datastore: Datastore, config: Config) -> KeyTimes:
    from dapd.commits.hpke_keys import key_times

    return datastore.read_sync(key_times, config)


def _instant(datastore: Datastore) -> Instant:
    """Return the wall clock and the stored safe clock, as a command has no safe clock of its own.

    The later of the two dates changes; the safe one decides what has expired.
    """
    from dapd.datastore import safe_clock
    from dapd.runtime.clock import SystemClock

    return datastore.read_sync(safe_clock.instant, SystemClock().now())


def _sealed_to(datastore: Datastore, config_id: int) -> int:
    """Count the reports of all unverified Helper jobs in which any report is encrypted to this key.

    A Leader has none: it decrypts reports when they are uploaded.
    """
    from dapd.datastore import helper_jobs
    from dapd.protocol.helper import config_ids_of

    total = 0
    for job_pk, n in datastore.read_sync(helper_jobs.waiting):
        request = datastore.read_sync(helper_jobs.request_of, job_pk)
        if request is not None and config_id in config_ids_of(request):
            total += n
    return total


def _description(each: StoredKey, stored: list[StoredKey], times: KeyTimes) -> dict[str, Any]:
    from dapd.protocol.keys import next_of
    from dapd.protocol.task import LAST_MOMENT

    names = {ids: name for name, ids in SUITES.items()}
    upcoming = next_of(each, stored, times)
    at = upcoming.at
    return {
        "config_id": each.config_id,
        "suite": names.get(each.suite) or "/".join(f"0x{number:04x}" for number in each.suite),
        "state": each.state.value,
        "since": _date(each.changed_at),
        "next_state": upcoming.to.value,
        "next_at": None if at is None or at > LAST_MOMENT else _date(at),
    }


def _outlook(description: dict[str, Any]) -> str:
    if description["next_at"] is None:
        return "kept for ever"
    return f"{description['next_state']} from {description['next_at']}"


def _date(milliseconds: int) -> str:
    moment = datetime.fromtimestamp(milliseconds / 1000, UTC)
    return moment.strftime("%Y-%m-%dT%H:%M:%SZ")
