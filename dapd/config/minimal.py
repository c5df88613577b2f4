"""The configuration of a new Aggregator, as `dapd init` writes it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Literal
from urllib.parse import urlsplit

from dapd.config import DATABASE, Server

SEALING_KEY = Path("keys/sealing-1.key")
METRICS_LISTEN = "127.0.0.1:9464"
"""The metrics address of a service, with the port of OpenTelemetry's Prometheus exporter."""


def minimal_config(
    role: Literal["leader", "helper"],
    url: str,
    *,
    listen: str | None = None,
    database: Path = DATABASE,
    socket: Path | None = None,
    metrics: str | None = None,
) -> str:
    """Return the smallest configuration of an Aggregator whose base URL is ``url``."""
    lines = [
        f"# A DAP {role.capitalize()} at {url}",
        "[server]",
        f"listen = {_quoted(listen or _listen_for(url))}",
        "",
        "[datastore]",
        f"path = {_quoted(database)}",
        f"sealing_keys = [{_quoted(SEALING_KEY)}]",
    ]
    admin = {"socket": socket, "listen": metrics}
    if any(admin.values()):
        lines += ["", "[admin]"]
        lines += [f"{key} = {_quoted(value)}" for key, value in admin.items() if value]
    if role == "helper":
        lines += ["", "[helper]", 'mode = "async"']
    return "\n".join(lines) + "\n"


def _quoted(value: str | Path) -> str:
    """Return a TOML string; an operator's path may contain any character."""
    return json.dumps(str(value), ensure_ascii=False)


def _listen_for(url: str) -> str:
    """Return the address in a loopback URL; any other URL belongs to a proxy in front of dapd."""
    parts = urlsplit(url)
    if parts.scheme == "http" and parts.hostname in {"localhost", "127.0.0.1", "::1"}:
        host = f"[{parts.hostname}]" if ":" in parts.hostname else parts.hostname
        return f"{host}:{parts.port or 80}"
    return Server().listen
