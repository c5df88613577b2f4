"""``dapd datastore``: manage sealing keys and check the database.

Backups are ``dapd backup``; the HPKE keys that Clients use are ``dapd key``.
"""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from dapd.cli.output import AS_JSON, load_config
from dapd.errors import UsageError
from dapd.wording import count

if TYPE_CHECKING:
    from dapd.config import Config
    from dapd.datastore import Opened

_ID_SIZE = 8
_LOST = {
    "collection_jobs.leader_share": "collections whose request was sent to the Helper: they fail, "
    "and their batches stay closed",
    "batch_shares.share": "contributions to batches: batches not yet collected can't be collected",
    "job_bodies.leader_state": "unfinished aggregation jobs: their reports count as lost",
    "chunk_rows.rows": "uploads not yet aggregated: their reports count as lost",
    "hpke_keypairs.private_key": "HPKE keys: reports encrypted to them are rejected",
    "tasks.verify_key": "verification keys: the task stops until `dapd task rekey FILE`",
    "tasks.aggregator_token": "tokens for the Helper: the task stops until `dapd task rekey FILE`",
}
"""For each sealed column, the consequence of losing its values."""


@click.group()
def datastore() -> None:
    """Manage sealing keys and check the database.

    Sealing keys encrypt the secrets in the database: private keys, tokens and report shares.

    \b
    To replace the sealing key:
      1. dapd datastore new-key keys/sealing-2.key
      2. Add the new file last to [datastore] sealing_keys and restart the daemon.
      3. Move it to the front of the list and restart again. The daemon seals
         everything with the new key, in the background.
      4. Once `dapd datastore keys` shows that the old key seals nothing, remove
         it from the list and restart.
    """


@datastore.command("new-key")
@click.argument("file", type=click.Path(dir_okay=False, path_type=Path))
def new_key(file: Path) -> None:
    """Make a sealing key and write it to FILE, which must not exist.

    \b
    Example:
      dapd datastore new-key keys/sealing-2.key
    """
    from dapd.cli.init import write_sealing_key
    from dapd.crypto import sealing_key_id

    try:
        key = write_sealing_key(file)
    except OSError as error:
        raise UsageError(f"{file}: {error.strerror}; name a new file") from None
    click.echo(f"Made sealing key {sealing_key_id(key).hex()} in {file}; keep a copy elsewhere.")
    click.echo("Next: add the file last to [datastore] sealing_keys and restart the daemon;")
    click.echo("then move it to the front of the list and restart again.")


@datastore.command("keys")
@AS_JSON
@click.pass_obj
def keys(config: Path | None, *, as_json: bool) -> None:
    """List the sealing keys, and how many values each has sealed.

    The first configured key ("seals") encrypts new values, the others ("opens") only decrypt.
    A "missing" key is not configured, although values need it.

    \b
    Example:
      dapd datastore keys
    """
    from dapd.datastore import sealed

    with _opened(config, "datastore keys") as (_, configured, opened):
        known = opened.datastore.read_sync(sealed.sealing_key_ids)
        used = opened.datastore.read_sync(sealed.usage)
    found = dict.fromkeys([*configured, *known, *(key for each in used.values() for key in each)])
    described = [
        {
            "key": key_id.hex(),
            "state": _state(key_id, configured),
            "values": {name: counts[key_id] for name, counts in used.items() if counts[key_id]},
        }
        for key_id in found
    ]
    if as_json:
        click.echo(json.dumps(described, indent=2))
        return
    for each in described:
        click.echo(f"{each['key']}  {each['state']:7}  {_values_text(each['values'])}")
    if missing := [each["key"] for each in described if each["state"] == "missing"]:
        click.echo(
            f"Add the file of key {missing[0]} to [datastore] sealing_keys; if it is lost, "
            f"run `dapd --config FILE datastore forget-key {missing[0]}`."
        )


@datastore.command("forget-key")
@click.argument("key_id", metavar="ID")
@click.option("--yes", is_flag=True, help="Don't ask.")
@click.pass_obj
def forget_key(config: Path | None, key_id: str, *, yes: bool) -> None:
    """Delete everything that a lost sealing key has sealed.

    Use this only if every copy of key ID is lost: without the key, or this command, the daemon
    can't start. Stop the daemon and remove the key from [datastore] sealing_keys first.

    The command shows what will be lost and asks before it deletes anything. Lost reports are
    counted in the tasks' counters; report ids and collected batches stay known. If interrupted,
    run it again.

    \b
    Example:
      dapd datastore forget-key 630dcd2966c43366
    """
    from dapd.commits.sealing_keys import (
        ORDER,
        Forgetting,
        forget_id,
        forget_page,
        key_usage,
        require_lost,
    )
    from dapd.datastore import safe_clock
    from dapd.datastore.lock import holder_of
    from dapd.protocol.task import Instant

    lost = _key_id(key_id)
    with _opened(config, "datastore forget-key") as (loaded, configured, opened):
        if opened.lock is None:
            path = loaded.datastore.path
            raise UsageError(f"{path} is held by {holder_of(path)}; stop it first")
        store = opened.datastore
        store.read_sync(require_lost, lost, configured)
        usage = store.read_sync(key_usage, lost)
        for name, n in usage.items():
            if n:
                click.echo(f"{n:8} {_LOST[name]}")
        if not yes:
            click.confirm(f"Forget key {key_id} and what it sealed, for good?", abort=True)
        now = time.time_ns() // 1_000_000
        # Dated by the later of the two clocks, as in `dapd key` (rule F1).
        later = store.read_sync(safe_clock.instant, now).later
        forgetting = Forgetting(lost, Instant(now, later))
        dropped: Counter[str] = Counter()
        for column in ORDER:
            after: int | None = -1
            while after is not None:
                after, counted = store.run_sync(forget_page, column, after, forgetting)
                dropped += counted
        store.run_sync(forget_id, lost)
    for name, n in sorted(dropped.items()):
        click.echo(f"{count(n, 'report'):>16} counted as {name}")
    click.echo(f"Forgot key {key_id}; the daemon can start without it now.")


@datastore.command("check")
@AS_JSON
@click.pass_obj
@click.pass_context
def check(ctx: click.Context, config: Path | None, *, as_json: bool) -> None:
    """Check the database for damage and inconsistencies.

    Changes nothing, and may run while the daemon runs. The exit status is 1 if something is wrong.

    \b
    Example:
      dapd datastore check
    """
    from dapd.datastore.check import check as find

    with _opened(config, "datastore check", needs_keys=False) as (_, _keys, opened):
        findings = opened.datastore.read_sync(find)
    if as_json:
        described = [{name: getattr(each, name) for name in each.__slots__} for each in findings]
        click.echo(json.dumps(described, indent=2))
    elif not findings:
        click.echo("ok")
    else:
        for each in findings:
            where = f"{each.table} {each.key}".strip()
            click.echo(f"{where}{': ' if where else ''}{each.problem}; {each.remedy}")
    ctx.exit(1 if findings else 0)


@contextmanager
def _opened(
    config: Path | None, command: str, *, needs_keys: bool = True
) -> Iterator[tuple[Config, list[bytes], Opened]]:
    """Open the configured datastore; yield the configuration, its key ids and the datastore.

    Doesn't check that the configured keys are enough to open it.
    """
    from dapd.cli.store import open_as_owner

    loaded = load_config(config)
    if not loaded.datastore.path.exists():
        raise UsageError(f"{loaded.datastore.path}: no database yet; start the daemon to make it")
    configured = _configured(loaded) if needs_keys else []
    opened = open_as_owner(loaded, command)
    try:
        yield loaded, configured, opened
    finally:
        opened.close()


def _configured(config: Config) -> list[bytes]:
    """Return the ids of the configured keys; the first one seals."""
    from dapd.config.keyfiles import read_sealing_keys
    from dapd.crypto import sealing_key_id

    return [sealing_key_id(key) for key in read_sealing_keys(config)]


def _key_id(text: str) -> bytes:
    try:
        key_id = bytes.fromhex(text)
    except ValueError:
        key_id = b""
    if len(key_id) != _ID_SIZE:
        raise UsageError(
            f"{text}: not a sealing key's id, which is {2 * _ID_SIZE} hexadecimal digits; "
            "`dapd datastore keys` lists them"
        )
    return key_id


def _state(key_id: bytes, configured: list[bytes]) -> str:
    if key_id == configured[0]:
        return "seals"
    return "opens" if key_id in configured else "missing"


def _values_text(values: Any) -> str:
    return ", ".join(f"{name} {n}" for name, n in values.items()) or "nothing"
