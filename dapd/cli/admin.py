"""``dapd admin``: access to the admin interface over the network.

Access to the Unix socket is not managed here; its file mode decides.
"""

from __future__ import annotations

import secrets

import click


@click.group()
def admin() -> None:
    """Manage access to the admin interface from other machines."""


@admin.command("token")
@click.option(
    "--scope",
    type=click.Choice(["read", "operate"]),
    default="read",
    show_default=True,
    help="read: metrics, status and the page. operate: also every change.",
)
def token(scope: str) -> None:
    """Make an admin token and print its configuration line.

    Needed only where [admin] listen is beyond loopback. The token is printed once and stored
    nowhere: the configuration contains only its hash. To revoke a token, remove its line and run
    `dapd reload`.

    \b
    Example, for a Prometheus server on another machine:
      dapd admin token --scope read
    """
    from dapd.crypto import hash_token
    from dapd.messages.common import b64url_encode

    made = secrets.token_urlsafe(32)
    click.echo(f"The token, printed only this once: {made}")
    click.echo("Add this to [admin] in the configuration, then run `dapd reload`:")
    click.echo(f'  tokens = ["{scope}:{b64url_encode(hash_token(made))}"]')
    click.echo("Clients send it as `Authorization: Bearer TOKEN`.")
