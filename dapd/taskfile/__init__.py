"""Task files: the TOML file that each of a task's four parties gets, as a frozen dataclass.

Section "Task Configuration"; rules B7 and C7. ``docs/tasks.md`` explains the files;
``dapd.datastore.tasks`` stores a task.

- ``read_task_file`` reads one party's file, ``write_task_files`` writes all four;
- a ``TaskDraft`` contains the keys that were chosen; ``new_task`` makes the rest;
- ``aggregator_task`` turns an Aggregator's file into the task that it stores.
"""

from __future__ import annotations

from dataclasses import replace

from dapd.crypto import hash_token
from dapd.messages.common import Role
from dapd.protocol.task import Task, TaskSettings
from dapd.taskfile.files import (
    ClientTask,
    CollectorTask,
    HelperTask,
    LeaderTask,
    TaskDraft,
    TaskFile,
    TaskFiles,
    read_task_draft,
    read_task_file,
    to_toml,
    write_task_file,
    write_task_files,
)
from dapd.taskfile.making import new_task, refuse_insecure_http, refuse_unsafe
from dapd.taskfile.values import parse_vdaf_spec

__all__ = [
    "ClientTask",
    "CollectorTask",
    "HelperTask",
    "LeaderTask",
    "TaskDraft",
    "TaskFile",
    "TaskFiles",
    "aggregator_task",
    "local_settings",
    "new_task",
    "parse_vdaf_spec",
    "read_task_draft",
    "read_task_file",
    "refuse_insecure_http",
    "refuse_unsafe",
    "to_toml",
    "write_task_file",
    "write_task_files",
]


def aggregator_task(task: LeaderTask | HelperTask, settings: TaskSettings) -> Task:
    """Return the task of an Aggregator's file, ready to be stored (``task_pk`` is 0)."""
    leads = isinstance(task, LeaderTask)
    token = task.aggregator_auth_token
    return Task(
        task_pk=0,
        task_id=task.task_id,
        role=Role.LEADER if leads else Role.HELPER,
        configuration_bytes=task.configuration.encode(),
        verify_key=task.vdaf_verify_key,
        verification_key_id=task.verification_key_id,
        collector_hpke_config=task.collector_hpke_config,
        aggregator_token=token if leads else None,
        inbound_token_hashes=(
            hash_token(task.collector_auth_token if isinstance(task, LeaderTask) else token),
        ),
        settings=settings,
    )


def local_settings(task: LeaderTask | HelperTask, defaults: TaskSettings) -> TaskSettings:
    """Return ``defaults``, with the expiry age from the file if that has one."""
    match task.report_expiry_age:
        case None:
            return defaults
        case int(age):
            return replace(defaults, report_expiry_age=age)
        case _:
            return replace(defaults, report_expiry_age=None)
