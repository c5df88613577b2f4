"""The daemon's configuration: frozen structs, each key with its range and its default.

Durations are seconds, sizes bytes. ``config.example.toml`` describes each key. Reading a file is in
``dapd.config.loading``; tasks and their settings are in ``dapd.taskfile``.
"""

from __future__ import annotations

import ipaddress
import os
from pathlib import Path
from typing import Annotated, Literal

from msgspec import Meta, Struct, field

from dapd.messages.common import b64url_decode

MAX_INTEGER = 2**63 - 1
DATABASE = Path("state/dapd.sqlite")

HelperMode = Literal["sync", "async", "auto"]
Scope = Literal["read", "operate"]
"""What a token of the admin interface allows."""

_TOKEN_HASH_SIZE = 32

_Count = Annotated[int, Meta(ge=1, le=1_000_000)]
_Bytes = Annotated[int, Meta(ge=1024, le=1 << 40)]
_Short = Annotated[float, Meta(ge=0, le=3600)]
_Positive = Annotated[float, Meta(ge=0.001, le=3600)]
_Day = Annotated[float, Meta(ge=0.001, le=86_400)]
_Month = Annotated[int, Meta(ge=0, le=31 * 86_400)]
_Year = Annotated[int, Meta(ge=0, le=366 * 86_400)]
_Patience = Annotated[float, Meta(ge=0.001, le=366 * 86_400)]
_Ages = Annotated[int, Meta(ge=1, le=MAX_INTEGER)]


class Server(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """``[server]``. ``listen`` is ``host:port``; port 0 takes a free one.

    A certificate (a PEM file with its chain) and its key switch TLS on.
    """

    listen: str = "127.0.0.1:8080"
    tls_certificate: Path | None = None
    tls_key: Path | None = None
    read_timeout: _Positive = 30.0
    max_body_bytes: _Bytes = 64 << 20
    hpke_config_max_age: _Month = 86_400

    @property
    def address(self) -> tuple[str, int]:
        """The host, without brackets, and the port. Raises ``ValueError``."""
        return _address(self.listen)


class Datastore(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """``[datastore]``. The first sealing key seals, all of them open (rule F2)."""

    path: Path = DATABASE
    sealing_keys: Annotated[tuple[Path, ...], Meta(min_length=1)]


class Helper(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """``[helper]``. ``max_running`` limits how many jobs run or wait for verification (A2)."""

    mode: HelperMode = "auto"
    auto_sync_seconds: _Short = 0.5
    sync_wait: _Positive = 10.0
    poll_hold: _Short = 5.0
    retry_after_max: _Positive = 60.0
    max_running: _Count = 64


class Leader(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """``[leader]``. Job sizes count reports; ``slots`` 0 means the number of cores; the PEM file
    ``peer_ca`` replaces the system's trust store.

    An upload group, which one transaction stores, takes requests until it reaches either limit. A
    job is given up after the Helper has refused it for ``give_up_after`` (rule D4).
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
    give_up_after: _Patience = 7 * 86_400.0

    @property
    def computing_slots(self) -> int:
        """The number of steps that may compute at once (rule E1)."""
        return self.slots or len(os.sched_getaffinity(0))


class Collection(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """``[collection]``. ``leader_selected_keep``: how long a served leader-selected job keeps its
    identity unless the Collector deletes it (rule A8). A job is given up after the Helper has
    refused its share for ``give_up_after`` (rule D4).
    """

    retry_after: _Short = 0.0
    poll_hold: _Short = 5.0
    leader_selected_keep: _Day = 3600.0
    give_up_after: _Patience = 3600.0


class Reports(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """``[reports]``. ``early_leeway``: how far ahead of this clock a report's time may be.

    ``max_replay_ids`` limits the replay index, which keeps the ids of tasks without an expiry age
    for ever (rule E4).
    """

    early_leeway: _Short = 300.0
    max_replay_ids: _Ages = 100_000_000


class Clock(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """``[clock]``. After a stop longer than ``longest_stop`` nothing expires until an operator
    confirms the time with ``dapd clock accept`` (rule D6).
    """

    longest_stop: Annotated[int, Meta(ge=3600, le=366 * 86_400)] = 7 * 86_400


class Gc(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """``[gc]``. The garbage collector runs every ``interval``; it deletes a task as a whole
    ``ended_task_retention`` after the end of the task's interval.
    """

    interval: _Positive = 60.0
    ended_task_retention: Annotated[int, Meta(ge=86_400, le=100 * 366 * 86_400)] = 90 * 86_400


class Keys(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """``[keys]``. How long an HPKE key is ``pending`` before it is published, which must be long
    enough for it to be in two backups, and how long it is ``active`` after that.
    """

    pending: _Year = 2 * 86_400
    active: Annotated[int, Meta(ge=3600, le=10 * 366 * 86_400)] = 84 * 86_400


class Admin(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """``[admin]``. ``socket`` is where commands reach the running daemon; ``None`` puts it beside
    the database, or into the directory that systemd made for it.

    ``listen``, ``host:port``, is a second listener. On loopback it serves metrics and health, and
    the ``page`` if that is set; beyond loopback it serves the whole interface to requests with a
    token. ``hosts`` are the names under which it may be addressed; ``tokens`` are ``read:HASH`` or
    ``operate:HASH`` (``dapd admin token``).
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
        """The host, without brackets, and the port; ``None`` without a listener.

        Raises ``ValueError``.
        """
        return None if self.listen is None else _address(self.listen)

    @property
    def is_remote(self) -> bool:
        """Whether other machines can reach the listener."""
        return self.address is not None and not is_loopback(self.address[0])

    @property
    def token_hashes(self) -> tuple[tuple[Scope, bytes], ...]:
        """The scope and the SHA-256 of each token. Raises ``ValueError``."""
        return tuple(parse_token(each) for each in self.tokens)


class Disk(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """``[disk]``. Below ``min_free_bytes`` uploads and new Helper jobs are refused (rule E4)."""

    min_free_bytes: Annotated[int, Meta(ge=0, le=1 << 50)] = 200 << 20


class Defaults(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """``[defaults]``: the local settings of tasks that are added without settings of their own.

    ``helper_mode`` ``None`` means ``[helper] mode``, ``batch_target_size`` ``None`` the task's
    minimum batch size. Reports that never expire are a task's own choice, never a default.
    """

    helper_mode: HelperMode | None = None
    batch_target_size: _Ages | None = None
    report_expiry_age: _Ages = 4 * 7 * 86_400


class Log(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """``[log]``. ``auto`` means human on a terminal, JSON lines elsewhere."""

    level: Literal["debug", "info", "warning", "error"] = "info"
    format: Literal["auto", "json", "human"] = "auto"


class Shutdown(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """``[shutdown]``. ``grace``: how long running work may take to finish (invariant I8)."""

    grace: _Short = 20.0


class Config(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The whole configuration. Only ``[datastore] sealing_keys`` has no default."""

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
    def give_up_after(self) -> dict[Literal["aggregation", "collection"], float]:
        """For how long (s) the Helper may refuse a job of each kind (rule D4)."""
        return {
            "aggregation": self.leader.give_up_after,
            "collection": self.collection.give_up_after,
        }

    @property
    def admin_socket(self) -> Path:
        """The path of the daemon's admin socket."""
        path = self.datastore.path
        return self.admin.socket or path.with_name(f"{path.name}.admin")


def is_loopback(host: str) -> bool:
    """Return whether ``host``, a name or an address, always means this machine."""
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _address(listen: str) -> tuple[str, int]:
    host, colon, port = listen.rpartition(":")
    bracketed = host.startswith("[") and host.endswith("]")
    if not colon or not host or (":" in host and not bracketed):
        raise ValueError(listen)
    if not (port.isascii() and port.isdigit() and int(port) < 1 << 16):
        raise ValueError(listen)
    return host.strip("[]"), int(port)


def parse_token(line: str) -> tuple[Scope, bytes]:
    """Split an entry of ``[admin] tokens`` into its scope and SHA-256. Raises ``ValueError``."""
    scope, _, text = line.partition(":")
    hashed = b64url_decode(text)
    match scope:
        case "read" | "operate" if len(hashed) == _TOKEN_HASH_SIZE:
            return scope, hashed
        case _:
            raise ValueError("not a scope and a hash")
