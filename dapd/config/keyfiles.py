"""The sealing keys' files: who may read them, and what is in them."""

from __future__ import annotations

import os
from pathlib import Path

from dapd.config import Config
from dapd.errors import UsageError
from dapd.messages.common import b64url_decode

SEALING_KEY_SIZE = 32


def read_sealing_keys(config: Config) -> list[bytes]:
    """The 32-byte sealing keys in the file's order. Raises ``UsageError`` that names the file."""
    return [read_sealing_key(path) for path in config.datastore.sealing_keys]


def read_sealing_key(path: Path) -> bytes:
    """One of them. Raises ``UsageError``."""
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
        remedy = "run this as root, or let this user read it"
        if "CREDENTIALS_DIRECTORY" in os.environ:
            remedy = "put it there, then restart: systemd passes on what is there at the start"
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
        raise UsageError(f"{path}: not 32 bytes as 43 characters of base64url; {again}")
    return key


def readable(path: Path) -> tuple[Path, int]:
    """The key file, and which bits of its mode are refused.

    A file that only root may read reaches a service as the credential ``keys_NAME``, of systemd's
    ``LoadCredential=keys:DIRECTORY``. That one may have a group bit: it is how an access list for
    the service's user, which systemd gives it, shows in the mode.
    """
    passed = os.environ.get("CREDENTIALS_DIRECTORY")
    if passed and not os.access(path, os.R_OK):
        credential = Path(passed, f"keys_{path.name}")
        if credential.exists():
            return credential, 0o037
    return path, 0o077
