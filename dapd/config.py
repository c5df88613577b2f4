"""The daemon's configuration: TOML -> frozen structs, each key with its range and its default.

Durations are seconds, sizes bytes. Relative paths are resolved against the file's directory, and
what is left out follows from that directory too, never from the environment: the daemon and every
command must mean the same files (ADR 0022). Left out: tasks (``dapd.taskfile``) and whatever only
one task needs. ``config.example.toml`` says what each key is for.
"""

from __future__ import annotations

import base64
import ipaddress
import json
import os
import re
import tomllib
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar
from urllib.parse import urlsplit

import msgspec
from msgspec import Meta, Struct, field

from dapd.errors import UsageError

T = TypeVar("T")

MAX_INTEGER = 2**63 - 1
SEALING_KEY_SIZE = 32
METRICS_LISTEN = "127.0.0.1:9464"
"""Where a service's metrics are: the port that OpenTelemetry's Prometheus exporter has."""
DATABASE = Path("state/dapd.sqlite")
SEALING_KEY = Path("keys/sealing-1.key")

HelperMode = Literal["sync", "async", "auto"]
Scope = Literal["read", "operate"]
"""What a token of the admin interface is for."""

_TOKEN_HASH_SIZE = 32
_HOST = re.compile(r"\[[0-9a-f:.]+\]|[a-z0-9._-]+")
"""A name as a Host header has it, in lower case and without a port."""

_Count = Annotated[int, Meta(ge=1, le=1_000_000)]
_Bytes = Annotated[int, Meta(ge=1024, le=1 << 40)]
_Short = Annotated[float, Meta(ge=0, le=3600)]
_Positive = Annotated[float, Meta(ge=0.001, le=3600)]
_Day = Annotated[float, Meta(ge=0.001, le=86_400)]
_Month = Annotated[int, Meta(ge=0, le=31 * 86_400)]
_Year = Annotated[int, Meta(ge=0, le=366 * 86_400)]
_Ages = Annotated[int, Meta(ge=1, le=MAX_INTEGER)]


class Server(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """``[server]``. ``listen`` is ``host:port``; port 0 takes a free one.

    With a certificate (a PEM file with its chain) and its key it is served over TLS.
    """

    listen: str = "127.0.0.1:8080"
    tls_certificate: Path | None = None
    tls_key: Path | None = None
    read_timeout: _Positive = 30.0
    max_body_bytes: _Bytes = 64 << 20
    hpke_config_max_age: _Month = 86_400

    @property
    def address(self) -> tuple[str, int]:
        """Host, without brackets, and port. Raises ``ValueError``."""
        return _address(self.listen)


class Datastore(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """``[datastore]``. The first sealing key seals, all open (rule F2)."""

    path: Path = DATABASE
    sealing_keys: Annotated[tuple[Path, ...], Meta(min_length=1)]


class Helper(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """``[helper]``. ``max_running`` bounds the jobs that are verified or wait for it (rule A2)."""

    mode: HelperMode = "auto"
    auto_sync_seconds: _Short = 0.5
    sync_wait: _Positive = 10.0
    poll_hold: _Short = 5.0
    retry_after_max: _Positive = 60.0
    max_running: _Count = 64


class Leader(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """``[leader]``. Job sizes count reports; ``slots`` 0 stands for the number of cores; the PEM
    file ``peer_ca`` takes the place of the system's trust store.

    An upload group, what one transaction stores, takes requests until either cap is reached.
    """

    min_job_size: _Count = 100
    max_job_size: _Count = 500
    max_wait: _Short = 1.0
    slots: Annotated[int, Meta(ge=0, le=1024)] = 0
    permits_per_peer: Annotated[int, Meta(ge=1, le=1024)] = 8
    upload_queue: _Count = 1000
    upload_group_requests: _Count = 1000
    upload_group_bytes: _Bytes = 16 << 20
    request_timeout: _Positive = 60.0
    peer_ca: Path | None = None
    retry_min: _Positive = 1.0
    retry_max: _Day = 600.0
    poll_min: _Positive = 0.05
    poll_max: _Day = 300.0

    @property
    def computing_slots(self) -> int:
        """How many steps may compute at once (rule E1)."""
        return self.slots or len(os.sched_getaffinity(0))


class Collection(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """``[collection]``. ``leader_selected_keep``: how long a served leader-selected job keeps its
    identity unless the Collector deletes it (rule A8).
    """

    retry_after: _Short = 0.0
    poll_hold: _Short = 5.0
    leader_selected_keep: _Day = 3600.0


class Reports(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """``[reports]``. ``early_leeway``: how far ahead of this clock a report may be.

    ``max_replay_ids`` bounds the replay index, whose ids never go for tasks without an expiry age
    (rule E4).
    """

    early_leeway: _Short = 300.0
    max_replay_ids: _Ages = 100_000_000


class Clock(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """``[clock]``. After a stop longer than ``longest_stop`` nothing expires until an operator has
    confirmed the time with ``dapd clock accept`` (rule D6).
    """

    longest_stop: Annotated[int, Meta(ge=3600, le=366 * 86_400)] = 7 * 86_400


class Gc(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """``[gc]``. A round of the garbage collector every ``interval``; a task is deleted as a whole
    once its interval ended longer ago than ``ended_task_retention``.
    """

    interval: _Positive = 60.0
    ended_task_retention: Annotated[int, Meta(ge=86_400, le=100 * 366 * 86_400)] = 90 * 86_400


class Keys(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """``[keys]``. How long an HPKE key is ``pending`` before it is published, long enough to be in
    two backups and in every cache, and how long it is ``active`` then.
    """

    pending: _Year = 2 * 86_400
    active: Annotated[int, Meta(ge=3600, le=10 * 366 * 86_400)] = 84 * 86_400


class Admin(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """``[admin]``. ``socket`` is where commands reach the running daemon; ``None`` puts it beside
    the database, or where systemd has made a directory for it.

    ``listen``, ``host:port``, is a second listener: for metrics and health on loopback, with the
    ``page`` if wanted; for all, to whoever has a token, elsewhere. ``hosts`` are the names by which
    it is called, ``tokens`` are ``read:HASH`` or ``operate:HASH`` (``dapd admin token``).
    """

    socket: Path | None = None
    listen: str | None = None
    page: bool = False
    hosts: tuple[str, ...] = ()
    tls_certificate: Path | None = None
    tls_key: Path | None = None
    tokens: tuple[str, ...] = ()

    @property
    def address(self) -> tuple[str, int] | None:
        """Host, without brackets, and port, if there is a listener. Raises ``ValueError``."""
        return None if self.listen is None else _address(self.listen)

    @property
    def is_remote(self) -> bool:
        """Whether others than this machine reach the listener."""
        return self.address is not None and not is_loopback(self.address[0])

    @property
    def token_hashes(self) -> tuple[tuple[Scope, bytes], ...]:
        """What each token may do, and its SHA-256. Raises ``ValueError``."""
        return tuple(_token(each) for each in self.tokens)


class Disk(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """``[disk]``. Below ``min_free_bytes`` uploads and new Helper jobs are refused (rule E4)."""

    min_free_bytes: Annotated[int, Meta(ge=0, le=1 << 50)] = 200 << 20


class Defaults(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """``[defaults]``: the local settings of a task that is added without its own.

    ``helper_mode`` ``None`` follows ``[helper] mode``, ``batch_target_size`` ``None`` the task's
    minimum batch size. That reports never expire is said by a flag, task by task.
    """

    helper_mode: HelperMode | None = None
    batch_target_size: _Ages | None = None
    report_expiry_age: _Ages = 4 * 7 * 86_400


class Log(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """``[log]``. ``auto`` is human on a terminal, JSON lines elsewhere."""

    level: Literal["debug", "info", "warning", "error"] = "info"
    format: Literal["auto", "json", "human"] = "auto"


class Shutdown(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """``[shutdown]``. ``grace``: how long running work may take to end (invariant I8)."""

    grace: _Short = 20.0


class Config(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The whole file. Only ``[datastore] sealing_keys`` has no default."""

    datastore: Datastore
    server: Server = field(default_factory=Server)
    helper: Helper = field(default_factory=Helper)
    leader: Leader = field(default_factory=Leader)
    collection: Collection = field(default_factory=Collection)
    reports: Reports = field(default_factory=Reports)
    clock: Clock = field(default_factory=Clock)
    gc: Gc = field(default_factory=Gc)
    keys: Keys = field(default_factory=Keys)
    admin: Admin = field(default_factory=Admin)
    disk: Disk = field(default_factory=Disk)
    defaults: Defaults = field(default_factory=Defaults)
    log: Log = field(default_factory=Log)
    shutdown: Shutdown = field(default_factory=Shutdown)

    @property
    def admin_socket(self) -> Path:
        """Where the daemon's admin socket is."""
        path = self.datastore.path
        return self.admin.socket or path.with_name(f"{path.name}.admin")


def load(path: Path) -> Config:
    """Read and check a configuration file. Raises ``UsageError``."""
    hint = "config.example.toml lists every key with its meaning"
    with suppress(PermissionError):  # reading says it better
        if not path.exists():
            raise UsageError(f"{path}: no such file; make one with `dapd init`")
    config = in_place(read_toml(path, Config, hint), path.absolute().parent)
    for problem in _contradictions(config):
        raise UsageError(f"{path}: {problem}")
    return config


def read_toml(path: Path, type: type[T], hint: str) -> T:
    """A TOML file as ``type``; paths in it are relative to its directory.

    Raises ``UsageError``: one line that names the file and the key, and ends with ``hint``.
    """
    try:
        document = tomllib.loads(path.read_text(encoding="utf-8"))
        return msgspec.convert(document, type, dec_hook=_path_below(path.absolute().parent))
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
    key = _from_base64url(text)
    if key is None or len(key) != SEALING_KEY_SIZE:
        raise UsageError(f"{path}: not 32 bytes as 43 characters of base64url; {again}")
    return key


def minimal_config(
    role: Literal["leader", "helper"],
    url: str,
    *,
    listen: str | None = None,
    database: Path = DATABASE,
    socket: Path | None = None,
    metrics: str | None = None,
) -> str:
    """The smallest configuration of an Aggregator that is reached at ``url``."""
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
    """As a TOML string; a path of an operator's may hold anything."""
    return json.dumps(str(value), ensure_ascii=False)


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


def is_loopback(host: str) -> bool:
    """Whether only this machine is called so; ``host`` is a name or an address."""
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _contradictions(config: Config) -> list[str]:
    found = [*_listening(config), *_admin_contradictions(config)]
    for low, high in (("min_job_size", "max_job_size"), ("retry_min", "retry_max")):
        if getattr(config.leader, low) > getattr(config.leader, high):
            found.append(f"leader.{low}: it is above leader.{high}; lower it, or raise that")
    if config.keys.pending >= config.keys.active:
        found.append("keys.pending: it is not below keys.active; lower it, or raise that")
    if len(set(config.datastore.sealing_keys)) < len(config.datastore.sealing_keys):
        found.append("datastore.sealing_keys: a file is named twice; name it once")
    return found


def _listening(config: Config) -> Iterator[str]:
    for table, section in (("server", config.server), ("admin", config.admin)):
        try:
            _ = section.address
        except ValueError:
            yield (
                f'{table}.listen: "{section.listen}" is no address; '
                'write "host:port", such as "127.0.0.1:8080" or "[::]:8080"'
            )
        if (section.tls_certificate is None) != (section.tls_key is None):
            yield f"{table}.tls_certificate: it and {table}.tls_key go together; set both or none"


def _admin_contradictions(config: Config) -> Iterator[str]:
    admin = config.admin
    for each in admin.tokens:
        try:
            _token(each)
        except ValueError:
            yield (
                "admin.tokens: one is no scope and hash; write the line that `dapd admin token` "
                "prints"
            )
    for name in admin.hosts:
        if not _HOST.fullmatch(name):
            yield (
                f'admin.hosts: "{name}" is no name; write one in lower case, without scheme, port '
                "and path"
            )
    try:
        remote = admin.is_remote
    except ValueError:
        return  # told
    if admin.listen == config.server.listen and not admin.listen.endswith(":0"):
        yield "admin.listen: it is server.listen; choose another port"
    for key in ("tls_certificate", "hosts", "tokens"):
        is_set = bool(getattr(admin, key))
        if remote and not is_set:
            yield (
                f"admin.{key}: a listener beyond loopback needs it; set it, or listen on "
                f"{METRICS_LISTEN}"
            )
        elif is_set and not remote and key != "hosts":
            yield (
                f"admin.{key}: only a listener beyond loopback has it; take it out, or set "
                "admin.listen to such a one"
            )


def _address(listen: str) -> tuple[str, int]:
    host, colon, port = listen.rpartition(":")
    bracketed = host.startswith("[") and host.endswith("]")
    if not colon or not host or (":" in host and not bracketed):
        raise ValueError(listen)
    if not (port.isascii() and port.isdigit() and int(port) < 1 << 16):
        raise ValueError(listen)
    return host.strip("[]"), int(port)


def _token(line: str) -> tuple[Scope, bytes]:
    scope, _, text = line.partition(":")
    hashed = _from_base64url(text)
    match scope:
        case "read" | "operate" if hashed is not None and len(hashed) == _TOKEN_HASH_SIZE:
            return scope, hashed
        case _:
            raise ValueError("no scope and hash")


def _from_base64url(text: str) -> bytes | None:
    """The bytes, if ``text`` is what they are written as."""
    try:
        data = base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))
    except ValueError:
        return None
    return data if base64.urlsafe_b64encode(data).decode().rstrip("=") == text else None


def _path_below(directory: Path) -> Any:
    def decode(type: type[Any], value: Any) -> Any:
        if type is not Path:
            raise NotImplementedError(type)
        if not isinstance(value, str) or not value:
            raise ValueError("Expected the path of a file")
        return directory / value

    return decode


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


def _listen_for(url: str) -> str:
    """A loopback URL is served where it points; any other one by a proxy in front of dapd."""
    parts = urlsplit(url)
    if parts.scheme == "http" and parts.hostname in {"localhost", "127.0.0.1", "::1"}:
        host = f"[{parts.hostname}]" if ":" in parts.hostname else parts.hostname
        return f"{host}:{parts.port or 80}"
    return Server().listen
