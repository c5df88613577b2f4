"""``dapd admin``: who may use the admin interface from elsewhere. Left out: the Unix socket, whose
file's mode says it.
"""

from __future__ import annotations

import secrets

import click


@click.group()
def admin() -> None:
    """Who may look at the daemon, and change what it does, from another machine."""


@admin.command("token")
@click.option(
    "--scope",
    type=click.Choice(["read", "operate"]),
    default="read",
    show_default=True,
    help="See all, or change all too.",
)
def token(scope: str) -> None:
    """Make a token for the admin listener beyond loopback, and its line of the configuration.

    The token is shown this once, and kept nowhere: the configuration has its hash alone. To take a
    token back, take its line out and `dapd reload`.

    \b
    Example, for the Prometheus of another machine:
      dapd admin token --scope read
    """
    from dapd.crypto import hash_token
    from dapd.messages.common import b64url_encode

    made = secrets.token_urlsafe(32)
    click.echo(f"The token, shown this once: {made}")
    click.echo("In [admin] of the configuration, beside those that are there; then `dapd reload`:")
    click.echo(f'  tokens = ["{scope}:{b64url_encode(hash_token(made))}"]')
    click.echo("Its bearer sends it as `Authorization: Bearer TOKEN`.")
