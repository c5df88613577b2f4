"""A TOML file -> the configuration without contradictions, or one line that says why not.

Relative paths are resolved against the file's directory, and what is left out follows from that
directory too, never from the environment: the daemon and every command must mean the same files
(ADR 0022).
"""

from __future__ import annotations

import tomllib
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from dapd.config import Config
from dapd.config.contradictions import contradictions
from dapd.errors import UsageError

T = TypeVar("T")


def load(path: Path) -> Config:
    """Read and check a configuration file. Raises ``UsageError``."""
    hint = "config.example.toml lists every key with its meaning"
    with suppress(PermissionError):  # reading says it better
        if not path.exists():
            raise UsageError(f"{path}: no such file; make one with `dapd init`")
    config = in_place(read_toml(path, Config, hint), path.absolute().parent)
    for problem in contradictions(config):
        raise UsageError(f"{path}: {problem}")
    return config


def read_toml(path: Path, type: type[T], hint: str) -> T:
    """A TOML file as ``type``; paths in it are relative to its directory.

    Raises ``UsageError``: one line that names the file and the key, and ends with ``hint``.
    """
    try:
        document = tomllib.loads(path.read_text(encoding="utf-8"))
        return msgspec.convert(document, type, dec_hook=_path_below(path.absolute().parent))
    except IsADirectoryError:
        raise UsageError(f"{path}: a directory; name the file in it") from None
    except OSError as error:
        raise UsageError(f"{path}: {error.strerror}; let this user read it") from error
    except UnicodeDecodeError as error:
        raise UsageError(f"{path}: it is not UTF-8 text; {hint}") from error
    except tomllib.TOMLDecodeError as error:
        raise UsageError(f"{path}: {error}; mend the TOML there") from error
    except msgspec.ValidationError as error:
        raise UsageError(f"{path}: {explain(error)}; {hint}") from error


def explain(error: msgspec.ValidationError) -> str:
    """The key, then what is wrong with it."""
    what, _, where = str(error).partition(" - at `$")
    key = where.rstrip("`").lstrip(".")
    what = what[:1].lower() + what[1:]
    return f"{key}: {what}" if key else what


def in_place(config: Config, directory: Path) -> Config:
    """Where the files are that the configuration in ``directory`` leaves out.

    systemd names a service's directories ``/etc/NAME``, ``/var/lib/NAME`` and ``/run/NAME``.
    """
    database, socket = config.datastore.path, config.admin.socket
    service = directory.name if directory.parent == Path("/etc") else None
    if not database.is_absolute():
        database = Path("/var/lib", service, database.name) if service else directory / database
    if service and socket is None and Path("/run", service).is_dir():
        socket = Path("/run", service, "admin.sock")
    return msgspec.structs.replace(
        config,
        datastore=msgspec.structs.replace(config.datastore, path=database),
        admin=msgspec.structs.replace(config.admin, socket=socket),
    )


def _path_below(directory: Path) -> Any:
    def decode(type: type[Any], value: Any) -> Any:
        if type is not Path:
            raise NotImplementedError(type)
        if not isinstance(value, str) or not value or "\0" in value:
            raise ValueError("Expected the path of a file")
        return directory / value

    return decode
