"""``dapd backup``: copies of a daemon's database while it runs, and whether one would do."""

from __future__ import annotations

import json
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

import click

from dapd.cli.output import load_config
from dapd.errors import UsageError
from dapd.wording import count, duration, exact_moment

if TYPE_CHECKING:
    from dapd.config import Config

_DAY = 86_400


class _MakeByDefault(click.Group):
    """``dapd backup DIR`` is the group's own work, ``dapd backup verify FILE`` a command in it."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        if args and args[0] not in (*self.commands, *self.get_help_option_names(ctx)):
            args = ["make", *args]
        return super().parse_args(ctx, args)


@click.group(cls=_MakeByDefault, subcommand_metavar="DIR | verify FILE")
def backup() -> None:
    """Copy the database into a directory, also while the daemon runs.

    \b
      --keep DAYS  Remove older backups there; by default, and at most, as long as
                   the reports in them may be kept (report_expiry_age).
      --json       Say what was made as JSON.

    Root does this as the user whom the database belongs to, who must be able to write to DIR.

    A backup holds no sealing key, and without the keys nobody can read it: keep copies of
    them, but not with the backups. `dapd restore` puts one back, docs/operating.md says how.

    \b
    Every night:
      dapd backup /mnt/backups/dapd
      dapd backup verify /mnt/backups/dapd/dapd-...sqlite
    """


@backup.command("make", hidden=True)
@click.argument("directory", metavar="DIR", type=click.Path(file_okay=False, path_type=Path))
@click.option("--keep", type=click.FloatRange(min=0, min_open=True), metavar="DAYS")
@click.option("--json", "as_json", is_flag=True)
@click.pass_obj
def make(config: Path | None, directory: Path, *, keep: float | None, as_json: bool) -> None:
    """What ``dapd backup DIR`` does."""
    import msgspec

    from dapd.datastore import backup as copies
    from dapd.process.owner import become_owner

    loaded = load_config(config)
    database = loaded.datastore.path
    _refuse_keys(loaded, directory)
    become_owner(database.parent)
    seconds = _kept_for(keep, copies.shortest_age(database))
    now = time.time_ns() // 1_000_000
    with _sigterm_raises():
        made = copies.take(
            database, directory, copies.backup_name, now=now, spare=_spare(loaded, directory)
        )
        removed = copies.remove_old_backups(made, seconds)
        copies.remove_expired_copies(database, made.state_of, made.shortest_age)
        last = copies.note_backup(database, made, now=now)
    if as_json:
        click.echo(
            json.dumps({**msgspec.to_builtins(last), "removed": [str(path) for path in removed]})
        )
        return
    click.echo(f"{made.path}: {made.size / 1e6:.1f} MB, commit sequence {made.sequence}.")
    if removed:
        click.echo(f"Removed {count(len(removed), 'older backup')}.")
    click.echo(
        "It holds no sealing key. Keep a copy of these elsewhere, apart from the backups: "
        f"{', '.join(map(str, loaded.datastore.sealing_keys))}"
    )


@backup.command("verify")
@click.argument("file", type=click.Path(path_type=Path))
@click.option("--json", "as_json", is_flag=True, help="What it holds as JSON.")
@click.pass_obj
def verify(config: Path | None, file: Path, *, as_json: bool) -> None:
    """Check a backup: the file, what must hold in it, and that the keys open all that is sealed.

    The exit status is 1 if something is wrong.

    \b
    Example:
      dapd backup verify /mnt/backups/dapd/dapd-...sqlite
    """
    import msgspec

    from dapd.config.keyfiles import read_sealing_keys
    from dapd.crypto import make_sealer, sealing_key_id
    from dapd.datastore.verify import verify as look_into

    keys = read_sealing_keys(load_config(config))
    found = look_into(file, make_sealer(keys), [sealing_key_id(key) for key in keys])
    if as_json:
        click.echo(json.dumps(msgspec.to_builtins(found)))
        return
    state = _time(found.state_of)
    click.echo(f"{file}: schema {found.schema}, commit sequence {found.sequence}, {state}")
    for name, n in found.rows.items():
        click.echo(f"{n:>12,}  {name}")
    click.echo("Sealed values, all opened with the configured keys:")
    for name, n in found.opened.items():
        click.echo(f"{n:>12,}  {name}")
    click.echo("The backup is good.")


def _kept_for(keep: float | None, shortest_age: int | None) -> int | None:
    """Seconds; ``None`` leaves it to the reports' own age."""
    if keep is None:
        return None
    seconds = int(keep * _DAY)
    if shortest_age is not None and seconds > shortest_age:
        raise UsageError(
            f"--keep: reports of some task may be kept for {duration(1000 * shortest_age)} "
            "(report_expiry_age), in backups too; keep them no longer"
        )
    return seconds


def _refuse_keys(config: Config, directory: Path) -> None:
    for key in config.datastore.sealing_keys:
        if key.resolve().is_relative_to(directory.resolve()):
            raise UsageError(
                f"{directory}: the sealing key {key} lies below it; who gets both can read all, so "
                "take another directory"
            )


def _spare(config: Config, directory: Path) -> int:
    """What the copy must leave free: beside the database, what the daemon needs to go on (E4)."""
    from dapd.datastore.backup import SPARE_BYTES

    database = config.datastore.path.parent
    shared = directory.exists() and directory.stat().st_dev == database.stat().st_dev
    return max(SPARE_BYTES, config.disk.min_free_bytes if shared else 0)


def _time(state_of: int | None) -> str:
    if state_of is None:
        return "before any daemon ran"
    return f"the state of {exact_moment(datetime.fromtimestamp(state_of // 1000, UTC))}"


@contextmanager
def _sigterm_raises() -> Iterator[None]:
    """A time limit's SIGTERM ends it as Ctrl-C does, so that no partial file is left."""
    before = signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
