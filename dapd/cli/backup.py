"""``dapd backup``: copy a daemon's database while it runs, and verify a copy."""

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

from dapd.cli.output import AS_JSON, load_config
from dapd.errors import UsageError
from dapd.wording import count, exact_moment

if TYPE_CHECKING:
    from dapd.config import Config

_DAY = 86_400


class _MakeByDefault(click.Group):
    """The group that reads ``dapd backup DIR`` as its hidden command ``make DIR``."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        if args and args[0] not in (*self.commands, *self.get_help_option_names(ctx)):
            args = ["make", *args]
        return super().parse_args(ctx, args)


@click.group(cls=_MakeByDefault, subcommand_metavar="DIR | verify FILE")
def backup() -> None:
    """Copy the database into the directory DIR. The daemon may keep running.

    \b
      --keep DAYS  Remove backups in DIR that are older than DAYS. Default and
                   maximum: how long their reports may be kept (report_expiry_age).
      --json       Print JSON.

    Run as root, this command becomes the user that owns the database; that user must be able to
    write to DIR.

    A backup doesn't contain the sealing keys, and it can't be read without them: keep copies of
    the keys, but apart from the backups. `dapd restore` restores a backup; docs/operating.md
    describes how.

    \b
    Example, for every night:
      dapd backup /mnt/backups/dapd
      dapd backup verify /mnt/backups/dapd/dapd-...sqlite
    """


@backup.command("make", hidden=True)
@click.argument("directory", metavar="DIR", type=click.Path(file_okay=False, path_type=Path))
@click.option("--keep", type=click.FloatRange(min=0, min_open=True), metavar="DAYS")
@click.option("--json", "as_json", is_flag=True)
@click.pass_obj
def make(config: Path | None, directory: Path, *, keep: float | None, as_json: bool) -> None:
    """Copy the database into a new file in DIR. The daemon may keep running."""
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
        "A backup doesn't contain the sealing keys. Keep copies of these files, apart from the "
        f"backups: {', '.join(map(str, loaded.datastore.sealing_keys))}"
    )


@backup.command("verify")
@click.argument("file", type=click.Path(path_type=Path))
@AS_JSON
@click.pass_obj
def verify(config: Path | None, file: Path, *, as_json: bool) -> None:
    """Check that the backup FILE can be restored.

    Checks the file for damage and inconsistencies, and opens every sealed value with the configured
    keys. The exit status is 1 if something is wrong.

    \b
    Example:
      dapd backup verify /mnt/backups/dapd/dapd-...sqlite
    """
    import msgspec

    from dapd.config.keyfiles import read_sealing_keys
    from dapd.crypto import make_sealer, sealing_key_id
    from dapd.datastore.verify import verify as verify_backup

    keys = read_sealing_keys(load_config(config))
    found = verify_backup(file, make_sealer(keys), [sealing_key_id(key) for key in keys])
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
    """Return ``--keep`` in seconds; ``None`` means as long as the reports' expiry age."""
    if keep is None:
        return None
    seconds = int(keep * _DAY)
    if shortest_age is not None and seconds > shortest_age:
        raise UsageError(
            f"--keep {keep:g}: a task's reports expire earlier (report_expiry_age), and backups "
            f"must not outlive them; give at most {shortest_age / _DAY:g}"
        )
    return seconds


def _refuse_keys(config: Config, directory: Path) -> None:
    for key in config.datastore.sealing_keys:
        if key.resolve().is_relative_to(directory.resolve()):
            raise UsageError(
                f"{directory}: contains the sealing key {key}, which makes the backups readable; "
                "choose another directory"
            )


def _spare(config: Config, directory: Path) -> int:
    """Return how many bytes the copy must leave free: on the database's own file system, what the
    daemon needs to keep accepting reports (E4).
    """
    from dapd.datastore.backup import SPARE_BYTES

    database = config.datastore.path.parent
    shared = directory.exists() and directory.stat().st_dev == database.stat().st_dev
    return max(SPARE_BYTES, config.disk.min_free_bytes if shared else 0)


def _time(state_of: int | None) -> str:
    if state_of is None:
        return "not used by a daemon yet"
    return f"the state of {exact_moment(datetime.fromtimestamp(state_of // 1000, UTC))}"


@contextmanager
def _sigterm_raises() -> Iterator[None]:
    """Handle SIGTERM like Ctrl-C while the block runs, so that no partial file is left behind."""
    before = signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
