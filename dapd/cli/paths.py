"""Which configuration a command means that is called without ``--config``.

Only this follows the environment: where everything else is, the configuration says (ADR 0022).
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from dapd.errors import UsageError

CONFIG = "dapd.toml"
SYSTEM_CONFIG = Path("/etc/dapd", CONFIG)


def find_config(given: Path | None) -> Path:
    """``given``, or the first that is there of the usual places.

    Raises ``UsageError``, which says where was looked and how to make one.
    """
    if given is not None:
        return given
    places = usual_places(os.environ, root=os.geteuid() == 0)
    for path in places:
        if os.access(path, os.F_OK):
            return path
    looked = ", ".join(map(str, places))
    raise UsageError(
        f"no configuration at {looked}; make one with `dapd init`, or say which: "
        "dapd --config FILE ..."
    )


def usual_places(environment: Mapping[str, str], *, root: bool) -> list[Path]:
    """Where a configuration is looked for, in this order: where ``DAPD_CONFIG`` says, in the
    directory that systemd gives a service, in the user's own, in the system's.
    """
    if chosen := environment.get("DAPD_CONFIG"):
        return [Path(chosen)]
    # systemd separates several directories by colons; the first is the service's main one.
    service = environment.get("CONFIGURATION_DIRECTORY", "").split(":")[0]
    return [
        *([Path(service, CONFIG)] if service else []),
        # Root's own home is no place for a service, and `sudo` may leave it another user's.
        *([] if root else [user_directory(environment, "XDG_CONFIG_HOME", ".config") / CONFIG]),
        SYSTEM_CONFIG,
    ]


def user_directory(environment: Mapping[str, str], variable: str, default: str) -> Path:
    """A user's directory for dapd by the XDG Base Directory Specification, which ignores values
    that are no absolute path.
    """
    base = Path(environment.get(variable, ""))
    return (base if base.is_absolute() else Path.home() / default) / "dapd"
