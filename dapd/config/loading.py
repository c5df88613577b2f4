"""Read a TOML file into structs; errors are one line that names the file, the key and the remedy.

Relative paths are resolved against the file's directory. Defaults of paths depend on that directory
too, never on the environment: the daemon and every command must use the same files (ADR 0022).
"""

from __future__ import annotations

import difflib
import tomllib
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from dapd.config import Config
from dapd.config.contradictions import contradictions
from dapd.errors import UsageError, printable

T = TypeVar("T")


def load(path: Path) -> Config:
    """Read and check a configuration file. Raises ``UsageError``."""
    hint = "config.example.toml lists every key with its meaning"
    with suppress(PermissionError):  # reading the file reports it better
        if not path.exists():
            raise UsageError(f"{path}: no such file; make one with `dapd init`")
    config = in_place(read_toml(path, Config, hint), path.absolute().parent)
    for problem in contradictions(config):
        raise UsageError(f"{path}: {problem}")
    return config


def read_toml(path: Path, type: type[T], hint: str) -> T:
    """Read a TOML file as the struct ``type``; paths in it are relative to its directory.

    Raises ``UsageError``: one line that names the file and the key, and usually ends with ``hint``.
    """
    try:
        document = tomllib.loads(path.read_text(encoding="utf-8"))
        _refuse_unknown_keys(document, type, f"{path}: ", hint)
        return msgspec.convert(document, type, dec_hook=_path_below(path.absolute().parent))
    except IsADirectoryError:
        raise UsageError(f"{path}: is a directory; name the file in it") from None
    except OSError as error:
        raise UsageError(f"{path}: {error.strerror}; let this user read it") from error
    except UnicodeDecodeError as error:
        raise UsageError(f"{path}: is not UTF-8 text; {hint}") from error
    except tomllib.TOMLDecodeError as error:
        raise UsageError(f"{path}: {error}; fix the TOML syntax there") from error
    except msgspec.ValidationError as error:
        raise UsageError(f"{path}: {explain(error)}; {hint}") from error


def _refuse_unknown_keys(table: dict[str, Any], struct: Any, where: str, hint: str) -> None:
    """Check the names of keys first: a misspelt key must not be reported as a missing one."""
    known = {field.encode_name: field.type for field in msgspec.structs.fields(struct)}
    for key in table:
        if key not in known:
            raise UsageError(f"{where}{unknown_key(key, known, hint)}")
    for key, value in table.items():
        if isinstance(value, dict) and msgspec.inspect.is_struct_type(known[key]):
            _refuse_unknown_keys(value, known[key], f"{where}{key}: ", hint)


def unknown_key(key: str, known: Iterable[str], hint: str) -> str:
    """Return the message for an unknown key, with the nearest known key or else ``hint``."""
    near = difflib.get_close_matches(key, known, n=1)
    return f"unknown key `{printable(key)}`; " + (f"did you mean `{near[0]}`?" if near else hint)


def explain(error: msgspec.ValidationError) -> str:
    """Return the key, then what is wrong with it."""
    what, _, where = str(error).partition(" - at `$")
    key = where.rstrip("`").lstrip(".")
    what = what[:1].lower() + what[1:]
    return f"{key}: {what}" if key else what


def in_place(config: Config, directory: Path) -> Config:
    """Fill in the database and socket paths for a configuration in ``directory``.

    A configuration in ``/etc/NAME`` is a systemd service's, whose other directories are
    ``/var/lib/NAME`` and ``/run/NAME``.
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
