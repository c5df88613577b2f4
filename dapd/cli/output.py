"""Print the daemon's answers, as JSON or as text."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

import click

from dapd.cli import required_config
from dapd.wording import duration, exact_moment

if TYPE_CHECKING:
    from collections.abc import Iterable

    import msgspec

    from dapd.config import Config

AS_JSON = click.option("--json", "as_json", is_flag=True, help="Print JSON.")


def load_config(config: Path | None) -> Config:
    """Read the daemon's configuration, which says where its database and admin socket are."""
    from dapd.config.loading import load

    return load(required_config(config))


def tell(answer: msgspec.Struct, lines: Iterable[str], *, as_json: bool) -> None:
    """Print the daemon's whole answer as JSON, or else ``lines``."""
    if as_json:
        import msgspec

        click.echo(msgspec.json.format(msgspec.json.encode(answer), indent=2))
        return
    for line in lines:
        click.echo(line)


def moment(at: datetime) -> str:
    """Return a time, and how far it is from now."""
    ahead = int((at - datetime.now(UTC)).total_seconds() * 1000)
    relative = f"in {duration(ahead)}" if ahead >= 0 else f"{duration(-ahead)} ago"
    return f"{exact_moment(at)} ({relative})"


def age(at: datetime) -> str:
    """Return how long ago ``at`` was."""
    return duration(max(0, int((datetime.now(UTC) - at).total_seconds() * 1000)))
