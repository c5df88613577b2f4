"""A task of an Aggregator: its configuration, its secrets and its local settings.

Section "Task Configuration". ``dapd.taskfile`` reads tasks from files, ``dapd.datastore.tasks``
stores them.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from enum import StrEnum
from functools import cached_property
from typing import NamedTuple

from dapd.messages.common import BatchMode, HpkeConfig, Role, b64url_encode
from dapd.messages.task import TaskConfiguration
from dapd.reports import ReportRules, TaskParameters
from dapd.vdaf import Vdaf, make_vdaf

MAX_INTEGER = 2**63 - 1
"""The largest integer that SQLite stores; a TaskConfiguration is stored as bytes."""
MAX_UINT64 = 2**64 - 1
END_OF_TIME = MAX_UINT64
LAST_MOMENT = 253_402_300_799_000
"""The end of the year 9999 in ms: Python has no later dates."""

_TIME_TO_COMMIT_MS = 10 * 60 * 1000
"""The time from making a job to its commit at the Helper, if nothing goes wrong, and the difference
between both clocks; generous.
"""


class TaskState(StrEnum):
    """The states of a task, set by an operator."""

    ACTIVE = "active"
    DRAINING = "draining"
    """The Leader refuses uploads as ``report_dropped``, and finishes the accepted reports."""
    DISABLED = "disabled"
    """The task answers every request as unrecognized, and its jobs rest until it is enabled."""
    DELETED = "deleted"
    """The task is unrecognized, and the garbage collector deletes its data."""
    PURGED = "purged"
    """Only a tombstone is left: the task's id and its watermark, which a task added again under
    this id takes over (rule D6).
    """

    @property
    def is_served(self) -> bool:
        """Whether this Aggregator answers the task's requests and works on its jobs."""
        return self in (TaskState.ACTIVE, TaskState.DRAINING)


@dataclass(frozen=True, slots=True)
class Instant:
    """One moment, in milliseconds: ``now`` by this machine's clock, ``safe`` by the one that makes
    things expire, which no jump of the first one moves (rule D6). ``held`` says that the machine's
    clock is in doubt, ``leeway`` how far ahead a report's time may be.
    """

    now: int
    safe: int
    leeway: int = 0
    held: bool = False

    @property
    def later(self) -> int:
        """The time by the clock that is ahead, in milliseconds."""
        return max(self.now, self.safe)

    @property
    def latest(self) -> int:
        """The latest time that a report may have; a later one is too early (rule B2).

        The safe time never falls: setting the clock back makes no report too early that was not. A
        clock in doubt makes none acceptable.
        """
        return (self.safe if self.held else self.later) + self.leeway


class Mark(NamedTuple):
    """The limits of expiry (rule D6).

    Reports of times below ``before`` (in time precisions) are expired; so is what belongs to no
    report's time and was made before ``ms`` (by the safe clock).
    """

    before: int
    ms: int


@dataclass(frozen=True, slots=True)
class TaskSettings:
    """Settings of this Aggregator alone, outside the TaskConfiguration (``dapd task set``).

    ``helper_mode`` is "sync", "async", "auto" or ``None`` for the server's default;
    ``batch_target_size`` is in reports, ``None`` for the minimum batch size;
    ``report_expiry_age`` is in seconds, ``None`` for never.
    """

    helper_mode: str | None = None
    batch_target_size: int | None = None
    report_expiry_age: int | None = None


@dataclass(frozen=True)
class Task:
    """One task in one role.

    ``expired_before`` is the stored watermark, in time precisions (D6). A restored database may
    have forgotten reports of times below ``quarantined_before``, also in time precisions.
    ``inbound_token_hashes`` are of the tokens that this Aggregator accepts: a Leader accepts the
    Collector's, a Helper the Leader's. There are two while one replaces the other.
    """

    task_pk: int
    task_id: bytes
    role: Role
    configuration_bytes: bytes
    verify_key: bytes = field(repr=False)  # I9: a repr ends up in tracebacks
    verification_key_id: int
    collector_hpke_config: HpkeConfig
    aggregator_token: str | None = field(repr=False)
    inbound_token_hashes: tuple[bytes, ...]
    settings: TaskSettings
    expired_before: int = 0
    quarantined_before: int = 0
    peer_accepted: bool = False
    state: TaskState = TaskState.ACTIVE

    @cached_property
    def configuration(self) -> TaskConfiguration:
        return TaskConfiguration.decode(self.configuration_bytes)

    @cached_property
    def vdaf(self) -> Vdaf:
        return make_vdaf(self.configuration.vdaf)

    @cached_property
    def parameters(self) -> TaskParameters:
        return TaskParameters(
            self.vdaf,
            self.task_id,
            self.configuration_bytes,
            self.verify_key,
            bucket_by_time=self.by_time,
        )

    @cached_property
    def id_text(self) -> str:
        """The task id in base64url, as in URLs and logs."""
        return b64url_encode(self.task_id)

    @property
    def by_time(self) -> bool:
        """Whether the batch mode is time-interval rather than leader-selected."""
        return self.configuration.batch_mode is BatchMode.TIME_INTERVAL

    @property
    def is_leader(self) -> bool:
        return self.role is Role.LEADER

    @property
    def batch_target_size(self) -> int:
        """The number of reports at which a leader-selected batch is full."""
        size = max(self.settings.batch_target_size or 0, self.configuration.min_batch_size)
        return min(size, MAX_INTEGER)

    def time_of(self, now: int) -> int:
        """Convert milliseconds to a time of this task."""
        return now // (1000 * self.configuration.time_precision)

    def ms_of(self, time: int) -> int:
        """Return the first millisecond of a time of this task."""
        return time * 1000 * self.configuration.time_precision

    def expired_before_at(self, at: Instant) -> int:
        """Return the time below which reports are expired: by the watermark or by age (rule D6).

        Reads hide, requests refuse and the garbage collector deletes by this one value.
        """
        age = self.settings.report_expiry_age
        if age is None:
            return self.expired_before
        return max(self.expired_before, self.time_of(max(0, at.safe - age * 1000)))

    def expiring_before_at(self, at: Instant) -> int:
        """Times below this expire before a job could be sent and committed, or have expired."""
        return self.expired_before_at(replace(at, safe=at.safe + _TIME_TO_COMMIT_MS))

    def mark_at(self, at: Instant) -> Mark:
        """Return the limits of expiry at this moment."""
        return self.mark_of(self.expired_before_at(at), at)

    def mark_of(self, expired_before: int, at: Instant) -> Mark:
        """Return the limits of expiry for a given watermark.

        The watermark may lie ahead of the clock, if the task was deleted and added again. ``ms``
        stays behind the clock, so that what is made now does not expire at once.
        """
        age = self.settings.report_expiry_age
        aged = 0 if age is None else max(0, at.safe - age * 1000)
        return Mark(expired_before, min(self.ms_of(expired_before), aged))

    def refused_before_at(self, at: Instant) -> int:
        """Return the time below which reports are dropped: they are expired, or were possibly
        admitted before a restore forgot them.
        """
        return max(self.expired_before_at(at), self.quarantined_before)

    def too_early_after_at(self, at: Instant) -> int:
        """Return the time above which reports are too early (rule B2)."""
        return self.time_of(at.latest)

    def rules_at(self, at: Instant) -> ReportRules:
        """Return the bounds for reports at this moment (rule B2)."""
        return self._rules_at(at, self.refused_before_at(at))

    def upload_rules_at(self, at: Instant) -> ReportRules:
        """Return the bounds for uploads: those of ``rules_at``, but a draining task drops all."""
        drains = self.state is TaskState.DRAINING
        return self._rules_at(at, END_OF_TIME if drains else self.refused_before_at(at))

    def _rules_at(self, at: Instant, expired_before: int) -> ReportRules:
        interval = self.configuration.task_interval
        start, end = (
            (interval.start, interval.start + interval.duration) if interval else (0, END_OF_TIME)
        )
        return ReportRules(
            too_early_after=self.too_early_after_at(at),
            task_start=start,
            task_end=end,
            expired_before=expired_before,
        )

    def url_path(self, resource: str) -> str:
        """Return the absolute path of a resource of this task.

        It is below the task's own endpoint, so it is right behind a proxy that strips a prefix.
        """
        mine = self.configuration
        endpoint = (
            mine.leader_aggregator_endpoint if self.is_leader else mine.helper_aggregator_endpoint
        )
        prefix = endpoint.partition("://")[2].partition("/")[2].strip("/")
        return "/".join(["", *filter(None, [prefix]), "tasks", self.id_text, resource])
