"""A task as an Aggregator works on it: its configuration, its secrets, its local settings.

Section "Task Configuration". Left out: how tasks are written in files (``dapd.taskfile``) and kept
(``dapd.datastore.tasks``).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property

from dapd.messages.common import BatchMode, HpkeConfig, Role, b64url_encode
from dapd.messages.task import TaskConfiguration
from dapd.reports import ReportRules, TaskParameters
from dapd.vdaf import Vdaf, make_vdaf

MAX_INTEGER = 2**63 - 1
"""Integers of a task are at most this, so that both engines store them."""
END_OF_TIME = 2**64 - 1


@dataclass(frozen=True, slots=True)
class TaskSettings:
    """Local to this Aggregator, outside the TaskConfiguration, changed by ``dapd task set``.

    ``helper_mode`` is "sync", "async", "auto" or ``None`` for the server's default;
    ``batch_target_size`` is in reports, ``None`` for the minimum batch size;
    ``report_expiry_age`` is in seconds, ``None`` for never.
    """

    helper_mode: str | None = None
    batch_target_size: int | None = None
    report_expiry_age: int | None = None


@dataclass(frozen=True)
class Task:
    """One task in one role. ``expired_before`` is the stored watermark, in time precisions (D6)."""

    task_pk: int
    task_id: bytes
    role: Role
    configuration_bytes: bytes
    verify_key: bytes = field(repr=False)  # I9: a repr ends up in tracebacks
    verification_key_id: int
    collector_hpke_config: HpkeConfig
    aggregator_token: str | None = field(repr=False)
    aggregator_token_hash: bytes | None
    collector_token_hash: bytes | None
    settings: TaskSettings
    expired_before: int = 0
    peer_accepted: bool = False

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
        """The task id as it stands in URLs and logs."""
        return b64url_encode(self.task_id)

    @property
    def by_time(self) -> bool:
        """Whether the batch mode is time-interval; else it is leader-selected."""
        return self.configuration.batch_mode is BatchMode.TIME_INTERVAL

    @property
    def is_leader(self) -> bool:
        return self.role is Role.LEADER

    @property
    def batch_target_size(self) -> int:
        """Reports that a leader-selected batch is filled to."""
        return max(self.settings.batch_target_size or 0, self.configuration.min_batch_size)

    def time_of(self, now: int) -> int:
        """``now`` in milliseconds as a time of this task."""
        return now // (1000 * self.configuration.time_precision)

    def expired_before_at(self, now: int) -> int:
        """Times below this are expired: the watermark, which never falls, or the age (rule D6)."""
        age = self.settings.report_expiry_age
        if age is None:
            return self.expired_before
        return max(self.expired_before, self.time_of(max(0, now - age * 1000)))

    def rules_at(self, now: int, early_leeway: float) -> ReportRules:
        """The bounds for reports judged at ``now`` (ms); the leeway is in seconds (rule B2)."""
        interval = self.configuration.task_interval
        start, end = (
            (interval.start, interval.start + interval.duration) if interval else (0, END_OF_TIME)
        )
        return ReportRules(
            too_early_after=self.time_of(now + int(early_leeway * 1000)),
            task_start=start,
            task_end=end,
            expired_before=self.expired_before_at(now),
        )

    def url_path(self, resource: str) -> str:
        """The absolute path of a resource of this task here.

        Below the task's own endpoint, so that it is right behind a proxy that strips a prefix.
        """
        mine = self.configuration
        endpoint = (
            mine.leader_aggregator_endpoint if self.is_leader else mine.helper_aggregator_endpoint
        )
        prefix = endpoint.partition("://")[2].partition("/")[2].strip("/")
        return "/".join(["", *filter(None, [prefix]), "tasks", self.id_text, resource])
