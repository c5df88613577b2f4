"""Find the task that an operator names by the first characters of its id."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from dapd.datastore import Datastore
    from dapd.datastore.tasks import SealedTask
    from dapd.protocol.task import Task

TASK_ID = click.argument("prefix", metavar="TASK_ID")


def find(datastore: Datastore, prefix: str) -> SealedTask:
    """Return the task whose id begins with ``prefix``. Raises ``UsageError``."""
    from dapd.datastore import tasks

    return tasks.named(datastore.read_sync(tasks.all_tasks), prefix)


def find_kept(datastore: Datastore, prefix: str) -> Task:
    """Return the task without its secrets. Raises ``UsageError``, also if it is deleted."""
    from dapd.commits.tasks import require_task

    return datastore.read_sync(require_task, find(datastore, prefix).task_id)
