"""``dapd task token``: replacing what one party authenticates to another with (rule A9)."""

from __future__ import annotations

import json
import secrets
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from dapd.cli.output import AS_JSON
from dapd.cli.store import command_store
from dapd.cli.task.lookup import TASK_ID, find
from dapd.errors import UsageError

if TYPE_CHECKING:
    from dapd.datastore.tasks import SealedTask

_PREFIX_BYTES = 4


@click.group()
def token() -> None:
    """Replace a task's tokens while both sides work: the receiver first.

    \b
    The Helper receives from the Leader:
      at the Helper   dapd task token add TASK_ID
      at the Leader   dapd task token use TASK_ID --file TOKEN
      at the Helper   dapd task token remove TASK_ID

    The Leader receives from the Collector in the same way: add at the Leader, put the token into
    collector.toml as collector_auth_token, remove at the Leader. Both tokens let in meanwhile.
    """


@token.command("add")
@TASK_ID
@click.pass_obj
def add(config: Path | None, prefix: str) -> None:
    """At the receiver, first: let in a new token too, and print it, this once.

    At most two are valid. Give it to the sender over a channel that keeps it secret.

    \b
    Example:
      dapd task token add 6Xf > token
    """
    from dapd.commits.tasks import add_token
    from dapd.crypto import hash_token
    from dapd.messages.common import Role

    made = secrets.token_urlsafe(32)
    with command_store(config, "task") as (_, datastore, _):
        found = find(datastore, prefix)
        datastore.run_sync(add_token, found.task_id, hash_token(made))
    click.echo(made)
    sender = (
        "the Collector: collector_auth_token in collector.toml"
        if found.role is Role.LEADER
        else "the Leader's operator: dapd task token use"
    )
    click.echo(f"For {sender}. Once it is in use: dapd task token remove", err=True)


@token.command("use")
@TASK_ID
@click.option(
    "--file",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="Where the token is.  [default: standard input]",
)
@click.pass_obj
def use(config: Path | None, prefix: str, file: Path | None) -> None:
    """At the Leader, second: send this token to the Helper from now on.

    The Helper must let it in already (`task token add` there), else its requests are refused until
    it does; nothing is lost meanwhile. The token is never an argument, which others could see.

    \b
    Example:
      dapd task token use 6Xf --file token
    """
    from dapd.commits.tasks import use_token
    from dapd.taskfile.values import Fault, token_of

    text = file.read_text(errors="replace") if file else sys.stdin.read()
    try:
        given = token_of("token", text.strip())
    except Fault as fault:
        raise UsageError(str(fault)) from None
    with command_store(config, "task") as (_, datastore, sealer):
        found = find(datastore, prefix)
        datastore.run_sync(use_token, found.task_id, given, sealer)
    click.echo(f"Task {found.id_text} sends the new token from now on.")


@token.command("remove")
@TASK_ID
@click.pass_obj
def remove(config: Path | None, prefix: str) -> None:
    """At the receiver, last: let the older of two tokens in no more.

    \b
    Example:
      dapd task token remove 6Xf
    """
    from dapd.commits.tasks import remove_token

    with command_store(config, "task") as (_, datastore, _):
        found = find(datastore, prefix)
        older = datastore.run_sync(remove_token, found.task_id)
    click.echo(f"Task {found.id_text}: token {_shown(older)} lets nobody in any more.")


@token.command("list")
@TASK_ID
@AS_JSON
@click.pass_obj
def list_tokens(config: Path | None, prefix: str, *, as_json: bool) -> None:
    """The tokens of a task, by the first digits of their SHA-256, which both sides may compare.

    \b
    Example:
      dapd task token list 6Xf
    """
    from dapd.commits.tasks import require_task
    from dapd.crypto import hash_token
    from dapd.datastore.tasks import UnreadableTask

    with command_store(config, "task") as (_, datastore, sealer):
        found = find(datastore, prefix)
        inbound = datastore.read_sync(require_task, found.task_id).inbound_token_hashes
        try:
            sent = found.unseal(sealer).aggregator_token
        except UnreadableTask:
            sent = None
    outbound = None if sent is None else _shown(hash_token(sent))
    if as_json:
        listed = {"inbound": [_shown(each) for each in inbound], "outbound": outbound}
        click.echo(json.dumps(listed, indent=2))
        return
    for place, each in enumerate(inbound):
        age = ("older", "newer")[place] if len(inbound) > 1 else "only"
        click.echo(f"{_shown(each)}  lets the {_sender(found)} in, the {age} one")
    if outbound is not None:
        click.echo(f"{outbound}  is sent to the Helper")


def _sender(task: SealedTask) -> str:
    from dapd.messages.common import Role

    return "Collector" if task.role is Role.LEADER else "Leader"


def _shown(token_hash: bytes) -> str:
    return token_hash[:_PREFIX_BYTES].hex()
