"""``dapd task token``: replace the tokens by which the parties authenticate (rule A9)."""

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
    """Replace a task's tokens without interrupting its service.

    \b
    To replace the token that the Leader sends to the Helper:
      at the Helper   dapd task token add TASK_ID
      at the Leader   dapd task token use TASK_ID --file TOKEN
      at the Helper   dapd task token remove TASK_ID

    \b
    To replace the token that the Collector sends to the Leader:
      at the Leader      dapd task token add TASK_ID
      at the Collector   set collector_auth_token in collector.toml
      at the Leader      dapd task token remove TASK_ID

    Between `add` and `remove` the receiver accepts both tokens.
    """


@token.command("add")
@TASK_ID
@click.pass_obj
def add(config: Path | None, prefix: str) -> None:
    """Make and print a token that this Aggregator accepts, too.

    The first step, at the receiver. The token is printed only this once: send it to the sender over
    a channel that keeps it secret. A task accepts at most two tokens.

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
    click.echo(f"For {sender}. Once it is in use, run: dapd task token remove", err=True)


@token.command("use")
@TASK_ID
@click.option(
    "--file",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="Read the token from this file.  [default: standard input]",
)
@click.pass_obj
def use(config: Path | None, prefix: str, file: Path | None) -> None:
    """Send this token to the Helper from now on.

    The second step, at the Leader. The Helper must accept the token already (`dapd task token add`
    there); until it does, it refuses the Leader's requests, but nothing is lost. The token is never
    an argument, because other users of this machine could see it.

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
    click.echo(f"Task {found.id_text} sends the new token to the Helper from now on.")


@token.command("remove")
@TASK_ID
@click.pass_obj
def remove(config: Path | None, prefix: str) -> None:
    """Stop accepting the older of a task's two tokens.

    The last step, at the receiver, once the sender uses the new token.

    \b
    Example:
      dapd task token remove 6Xf
    """
    from dapd.commits.tasks import remove_token

    with command_store(config, "task") as (_, datastore, _):
        found = find(datastore, prefix)
        older = datastore.run_sync(remove_token, found.task_id)
    click.echo(f"Task {found.id_text}: token {_shown(older)} is no longer accepted.")


@token.command("list")
@TASK_ID
@AS_JSON
@click.pass_obj
def list_tokens(config: Path | None, prefix: str, *, as_json: bool) -> None:
    """List a task's tokens by the first digits of their hashes.

    The hashes are SHA-256; both sides can compare them.

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
        click.echo(f"{_shown(each)}  accepted from the {_sender(found)}, the {age} one")
    if outbound is not None:
        click.echo(f"{outbound}  sent to the Helper")


def _sender(task: SealedTask) -> str:
    from dapd.messages.common import Role

    return "Collector" if task.role is Role.LEADER else "Leader"


def _shown(token_hash: bytes) -> str:
    return token_hash[:_PREFIX_BYTES].hex()
