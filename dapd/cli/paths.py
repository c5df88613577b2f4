"""Find the configuration when a command is called without ``--config``.

This is all that depends on the environment; the configuration names every other path (ADR 0022).
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from dapd.errors import UsageError

CONFIG = "dapd.toml"
SYSTEM_CONFIG = Path("/etc/dapd", CONFIG)


def find_config(given: Path | None) -> Path:
    """Return ``given``, or the first configuration that exists in the usual places.

    Raises ``UsageError``, which lists those places and says how to make a configuration.
    """
    if given is not None:
        return given
    places = usual_places(os.environ, root=os.geteuid() == 0)
    for path in places:
        if os.access(path, os.F_OK):
            return path
    looked = ", ".join(map(str, places))
    raise UsageError(
        f"no configuration at {looked}; make one with `dapd init`, or name yours: "
        "dapd --config FILE ..."
    )


def usual_places(environment: Mapping[str, str], *, root: bool) -> list[Path]:
    """Return the paths to search, in this order: ``DAPD_CONFIG``, or else systemd's configuration
    directory of the service, the user's directory, and the system's.
    """
    if chosen := environment.get("DAPD_CONFIG"):
        return [Path(chosen)]
    # systemd separates several directories by colons; the first is the service's main one.
    service = environment.get("CONFIGURATION_DIRECTORY", "").split(":")[0]
    return [
        *([Path(service, CONFIG)] if service else []),
        # Not for root: a service has no files in a home, and with `sudo` it may be another user's.
        *([] if root else [user_directory(environment, "XDG_CONFIG_HOME", ".config") / CONFIG]),
        SYSTEM_CONFIG,
    ]


def user_directory(environment: Mapping[str, str], variable: str, default: str) -> Path:
    """Return the user's directory for dapd by the XDG Base Directory Specification, which ignores
    relative paths in its variables.
    """
    base = Path(environment.get(variable, ""))
    return (base if base.is_absolute() else Path.home() / default) / "dapd"
