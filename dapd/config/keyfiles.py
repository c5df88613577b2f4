"""Read sealing key files and check their permissions."""

from __future__ import annotations

import os
from pathlib import Path

from dapd.config import Config
from dapd.errors import UsageError
from dapd.messages.common import b64url_decode

SEALING_KEY_SIZE = 32


def read_sealing_keys(config: Config) -> list[bytes]:
    """Read the configured sealing keys, 32 bytes each, in their order. Raises ``UsageError``."""
    return [read_sealing_key(path) for path in config.datastore.sealing_keys]


def read_sealing_key(path: Path) -> bytes:
    """Read one sealing key. Raises ``UsageError`` that names the file."""
    again = "restore it from its backup (without it the database can't be read)"
    path, forbidden = readable(path)
    try:
        mode = path.stat().st_mode
        text = path.read_text(encoding="ascii").strip()
    except FileNotFoundError:
        raise UsageError(
            f"{path}: this sealing key is missing; {again}, or make a first one with `dapd init`"
        ) from None
    except OSError as error:
        remedy = "run this as root, or let this user read the file"
        if "CREDENTIALS_DIRECTORY" in os.environ:
            remedy = "put it into the directory of the unit's LoadCredential= and restart dapd"
        raise UsageError(f"{path}: {error.strerror}; {remedy}") from error
    except UnicodeDecodeError:
        text = ""
    if mode & forbidden:
        raise UsageError(f"{path}: others may read this sealing key; run `chmod 600 {path}`")
    try:
        key = b64url_decode(text)
    except ValueError:
        key = b""
    if len(key) != SEALING_KEY_SIZE:
        raise UsageError(f"{path}: not a sealing key (43 characters of base64url); {again}")
    return key


def readable(path: Path) -> tuple[Path, int]:
    """Return the path to read a key from, and the mode bits that it must not have.

    A key file that only root may read reaches a service as systemd's credential ``keys_NAME``, by
    ``LoadCredential=keys:DIRECTORY``. A credential's group bit is allowed: it stands for the access
    list entry by which systemd lets the service's user read it.
    """
    passed = os.environ.get("CREDENTIALS_DIRECTORY")
    if passed and not os.access(path, os.R_OK):
        credential = Path(passed, f"keys_{path.name}")
        if credential.exists():
            return credential, 0o037
    return path, 0o077
