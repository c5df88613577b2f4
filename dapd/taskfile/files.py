"""Read and write one party's task file. New tasks are made in ``.making``."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import msgspec
from msgspec import Meta, Struct

from dapd.config.loading import read_toml
from dapd.errors import UsageError
from dapd.messages.common import TASK_ID_SIZE, BatchMode, HpkeConfig, b64url_encode
from dapd.messages.task import TaskConfiguration, task_interval_extension
from dapd.protocol.task import MAX_INTEGER, MAX_UINT64
from dapd.taskfile import values
from dapd.taskfile.values import Fault
from dapd.wording import count

VERIFY_KEY_SIZE = 32

HINT = "docs/tasks.md explains every key"
_MODES = {"time-interval": BatchMode.TIME_INTERVAL, "leader-selected": BatchMode.LEADER_SELECTED}

_Positive = Annotated[int, Meta(ge=1)]
_Seconds = Annotated[int, Meta(ge=1, le=MAX_INTEGER)]
Age = int | Literal["never"] | None
"""``report_expiry_age`` of a file: seconds, never, or (``None``) the Aggregator's default."""


class TaskDraft(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True, omit_defaults=True):
    """The keys of a task file, with their values as in the file; ``None`` for an absent key.

    Bytes are unpadded base64url. ``vdaf`` is ``{"type": ..., parameter: ...}``; ``task_interval``
    is (start, duration) in seconds, or with a start in ISO 8601.
    """

    role: Literal["leader", "helper", "collector", "client"] | None = None
    task_id: str | None = None
    task_info: str | None = None
    leader_aggregator_endpoint: str | None = None
    helper_aggregator_endpoint: str | None = None
    time_precision: _Positive | None = None
    min_batch_size: _Positive | None = None
    batch_mode: Literal["time-interval", "leader-selected"] | None = None
    vdaf: dict[str, int | str] | None = None
    task_interval: tuple[Any, Any] | None = None
    vdaf_verify_key: str | None = None
    verification_key_id: Annotated[int, Meta(ge=0, le=255)] | None = None
    aggregator_auth_token: str | None = None
    collector_auth_token: str | None = None
    collector_hpke_config: str | None = None
    collector_hpke_private_key: str | None = None
    report_expiry_age: _Seconds | Literal["never"] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ClientTask:
    """``client.toml``: the public part of a task, which every party knows."""

    task_id: bytes
    configuration: TaskConfiguration


@dataclass(frozen=True, slots=True, kw_only=True)
class LeaderTask(ClientTask):
    """``leader.toml``: the Leader's part of a task."""

    vdaf_verify_key: bytes = field(repr=False)
    verification_key_id: int = 0  # B4
    aggregator_auth_token: str = field(repr=False)
    collector_auth_token: str = field(repr=False)
    collector_hpke_config: HpkeConfig
    report_expiry_age: Age = None


@dataclass(frozen=True, slots=True, kw_only=True)
class HelperTask(ClientTask):
    """``helper.toml``: the Helper's part of a task."""

    vdaf_verify_key: bytes = field(repr=False)
    verification_key_id: int = 0  # B4
    aggregator_auth_token: str = field(repr=False)
    collector_hpke_config: HpkeConfig
    report_expiry_age: Age = None


@dataclass(frozen=True, slots=True, kw_only=True)
class CollectorTask(ClientTask):
    """``collector.toml``: the Collector's part of a task."""

    collector_auth_token: str = field(repr=False)
    collector_hpke_config: HpkeConfig
    collector_hpke_private_key: bytes = field(repr=False)


TaskFile = LeaderTask | HelperTask | CollectorTask | ClientTask
P = TypeVar("P", LeaderTask, HelperTask, CollectorTask, ClientTask)

_BY_ROLE: Mapping[str, type[TaskFile]] = {
    "leader": LeaderTask,
    "helper": HelperTask,
    "collector": CollectorTask,
    "client": ClientTask,
}
_SHARED = (
    "task_id",
    "task_info",
    "leader_aggregator_endpoint",
    "helper_aggregator_endpoint",
    "time_precision",
    "min_batch_size",
    "batch_mode",
    "vdaf",
    "task_interval",
)
_OPTIONAL = {"task_interval", "verification_key_id", "report_expiry_age"}
_CONVERSIONS: Mapping[str, Callable[[str, str], object]] = {
    "vdaf_verify_key": lambda key, text: values.bytes_of(key, text, VERIFY_KEY_SIZE),
    "aggregator_auth_token": values.token_of,
    "collector_auth_token": values.token_of,
    "collector_hpke_config": values.hpke_config_of,
    "collector_hpke_private_key": values.bytes_of,
}


@dataclass(frozen=True, slots=True)
class TaskFiles:
    """One task in four parts, one for each party."""

    leader: LeaderTask
    helper: HelperTask
    collector: CollectorTask
    client: ClientTask


def read_task_file(path: Path | str) -> TaskFile:
    """Read one party's task. Raises ``UsageError``, one line that names the file and the key."""
    path = Path(path)
    draft = read_task_draft(path)
    if draft.role is None:
        raise UsageError(f'{path}: role: missing; add the party\'s role, such as role = "helper"')
    try:
        return _task_of(draft, _BY_ROLE[draft.role])
    except Fault as fault:
        raise UsageError(f"{path}: {fault}") from None


def read_task_draft(path: Path) -> TaskDraft:
    """Read a task file, complete or not, for ``new_task``. Raises ``UsageError``."""
    if not path.exists():
        raise UsageError(f"{path}: no such file; make task files with `dapd task new`")
    return read_toml(path, TaskDraft, HINT)


def write_task_files(directory: Path, files: TaskFiles) -> list[Path]:
    """Write the four task files into ``directory``, which is made if it is missing.

    Overwrites nothing; raises ``UsageError`` if a file exists.
    """
    named = {directory / f"{role}.toml": getattr(files, role) for role in _BY_ROLE}
    for path in named:
        if path.exists():
            raise UsageError(f"{path}: exists already; give another directory, or move it away")
    try:
        directory.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(f"{directory}: {error.strerror}; give another directory") from error
    for path, task in named.items():
        write_task_file(path, task)
    return list(named)


def write_task_file(path: Path, task: TaskFile) -> None:
    """Write a task to a new file that only this user can read.

    Raises ``UsageError``, also if the file exists.
    """
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except OSError as error:
        raise UsageError(f"{path}: {error.strerror}; give another directory") from error
    with os.fdopen(descriptor, "w", encoding="utf-8") as file:
        file.write(to_toml(task))


def to_toml(task: TaskFile) -> str:
    """Return the text of a task file."""
    draft = msgspec.to_builtins(_draft_of(task))
    secret = "" if draft["role"] == "client" else " Keep it secret."
    lines = [f"# A DAP-18 task: the {draft['role']}'s file.{secret}"]
    lines += [
        f"{key} = {values.to_toml(draft[key])}"
        for key in TaskDraft.__struct_fields__
        if key in draft
    ]
    return "\n".join(lines) + "\n"


def _own_keys(party: type[TaskFile]) -> list[str]:
    return [each.name for each in fields(party) if each.name not in {"task_id", "configuration"}]


def narrowed(draft: TaskDraft, party: type[P]) -> P:
    """Return one party's task from a draft that contains other parties' keys, too."""
    known = {*_SHARED, *_own_keys(party)}
    foreign = {key: None for key in TaskDraft.__struct_fields__ if key not in known}
    return _task_of(msgspec.structs.replace(draft, **foreign), party)


def _task_of(draft: TaskDraft, party: type[P]) -> P:
    """Check and convert the keys of a draft into one party's task. Raises ``Fault``."""
    own: list[str] = _own_keys(party)
    _check_keys(draft, {*_SHARED, *own}, _role_of(party))
    given: dict[str, Any] = {key: getattr(draft, key) for key in own}
    given = {key: value for key, value in given.items() if value is not None}
    for key, convert in _CONVERSIONS.items():
        if key in given:
            given[key] = convert(key, given[key])
    if "collector_hpke_private_key" in given:
        values.check_pair(given["collector_hpke_config"], given["collector_hpke_private_key"])
    task_id = values.bytes_of("task_id", draft.task_id or "", TASK_ID_SIZE)
    return party(task_id=task_id, configuration=_configuration(draft), **given)


def _check_keys(draft: TaskDraft, known: set[str], role: str) -> None:
    for key in TaskDraft.__struct_fields__:
        present = getattr(draft, key) is not None
        if present and key not in known and key != "role":
            raise Fault(key, f"does not belong in the {role}'s file; remove the line")
        if not present and key in known - _OPTIONAL:
            raise missing(key)


def _configuration(draft: TaskDraft) -> TaskConfiguration:
    """Convert the ``_SHARED`` keys, all of which but ``task_interval`` must be present."""
    assert draft.task_info is not None
    assert draft.leader_aggregator_endpoint is not None
    assert draft.helper_aggregator_endpoint is not None
    assert draft.time_precision is not None
    assert draft.min_batch_size is not None
    assert draft.batch_mode is not None
    assert draft.vdaf is not None
    task_info = values.bytes_of("task_info", draft.task_info)
    if not 1 <= len(task_info) <= 255:  # B7
        raise Fault("task_info", f"has {count(len(task_info), 'byte')}; it must have 1 to 255")
    for key in ("time_precision", "min_batch_size"):
        if getattr(draft, key) > MAX_UINT64:  # msgspec itself can't check bounds beyond 2^63-1
            raise Fault(key, f"is {getattr(draft, key)}; it must be at most 2^64-1")
    leader, helper = draft.leader_aggregator_endpoint, draft.helper_aggregator_endpoint
    return TaskConfiguration(
        task_info=task_info,
        leader_aggregator_endpoint=values.endpoint_of("leader_aggregator_endpoint", leader),
        helper_aggregator_endpoint=values.endpoint_of("helper_aggregator_endpoint", helper),
        time_precision=draft.time_precision,
        min_batch_size=draft.min_batch_size,
        batch_mode=_MODES[draft.batch_mode],
        vdaf=values.vdaf_of(draft.vdaf, complete=True),
        extensions=()
        if draft.task_interval is None
        else (
            task_interval_extension(values.interval_of(draft.task_interval, draft.time_precision)),
        ),
    )


def _draft_of(task: TaskFile) -> TaskDraft:
    configuration = task.configuration
    interval = configuration.task_interval
    precision = configuration.time_precision
    by_time = configuration.batch_mode is BatchMode.TIME_INTERVAL
    own = {key: values.text_of(getattr(task, key)) for key in _own_keys(type(task))}
    return TaskDraft(
        role=_role_of(type(task)),
        task_id=b64url_encode(task.task_id),
        task_info=b64url_encode(configuration.task_info),
        leader_aggregator_endpoint=configuration.leader_aggregator_endpoint,
        helper_aggregator_endpoint=configuration.helper_aggregator_endpoint,
        time_precision=precision,
        min_batch_size=configuration.min_batch_size,
        batch_mode="time-interval" if by_time else "leader-selected",
        vdaf=values.vdaf_table(configuration.vdaf),
        task_interval=(
            (interval.start * precision, interval.duration * precision) if interval else None
        ),
        **own,
    )


def _role_of(party: type[TaskFile]) -> Any:
    return next(role for role, each in _BY_ROLE.items() if each is party)


def missing(key: str) -> Fault:
    """Return the error for an absent key that can't be made."""
    return Fault(key, f"missing; {HINT}")
