"""How commands tell what the daemon has answered: as JSON, or with times as people read them."""

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

AS_JSON = click.option("--json", "as_json", is_flag=True, help="For programs.")


def load_config(config: Path | None) -> Config:
    """The daemon's configuration, which says where its admin socket is."""
    from dapd.config.loading import load

    return load(required_config(config))


def tell(answer: msgspec.Struct, lines: Iterable[str], *, as_json: bool) -> None:
    """The daemon's whole answer for programs, or its ``lines`` for people."""
    if as_json:
        import msgspec

        click.echo(msgspec.json.format(msgspec.json.encode(answer), indent=2))
        return
    for line in lines:
        click.echo(line)


def moment(at: datetime) -> str:
    """A time, and how far it is from now."""
    ahead = int((at - datetime.now(UTC)).total_seconds() * 1000)
    relative = f"in {duration(ahead)}" if ahead >= 0 else f"{duration(-ahead)} ago"
    return f"{exact_moment(at)} ({relative})"


def age(at: datetime) -> str:
    """How long ago."""
    return duration(max(0, int((datetime.now(UTC) - at).total_seconds() * 1000)))
