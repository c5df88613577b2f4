"""What a person must do, given the daemon's status; nothing that mends itself is on the list.

Pure: a status in, sentences out, the most urgent first; each ends with the command that helps.
"""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime, timedelta
from typing import TYPE_CHECKING

from dapd.protocol.waiting import Reason, spell

if TYPE_CHECKING:
    from dapd.admin.status import StatusView

BACKUP_AGE = timedelta(days=2)
CERTIFICATE_LEFT = timedelta(days=21)
COLLECT_WITHIN = timedelta(days=1)
PEER_SILENT_SECONDS = 300.0
"""From here on somebody is to look; what is shorter a restart over there may explain."""
_FOR_A_PERSON = (Reason.FAILED, Reason.CRASHED)
"""Reasons of a waiting job for which nothing else of the status stands already."""


def what_to_do(status: StatusView, now: datetime) -> tuple[str, ...]:
    """Empty if there is nothing to do."""
    return (
        *_refusing(status),
        *_expiring(status, now),
        *_tasks(status),
        *only_the_daemon_knows(status),
        *_upkeep(status, now),
    )


def only_the_daemon_knows(status: StatusView) -> Iterator[str]:
    """What of it stands in no file and no table."""
    yield from _peers(status)
    yield from _jobs(status)
    if status.restart_for:
        waiting = ", ".join(status.restart_for)
        yield f"the daemon still runs with what was configured before as {waiting}: restart dapd"


def _refusing(status: StatusView) -> Iterator[str]:
    disk = status.disk
    if disk.free < disk.refused_below:
        yield f"{disk.free >> 20} MiB are free on the disk, and uploads are refused: make room"
    if not any(key.state == "active" for key in status.keys):
        yield "no HPKE key is active, and nobody can upload: dapd key add --active"
    if status.clock.held is not None:
        yield (
            f"the clock is held ({status.clock.held}), and nothing expires: set this machine's "
            "clock right, then dapd clock accept"
        )


def _expiring(status: StatusView, now: datetime) -> Iterator[str]:
    for task in status.tasks:
        if task.collect_before is not None and task.collect_before - now < COLLECT_WITHIN:
            yield (
                f"task {task.task} has uncollected reports that expire from "
                f"{task.collect_before:%Y-%m-%d %H:%M} UTC: have it collected"
            )


def _tasks(status: StatusView) -> Iterator[str]:
    for task in status.tasks:
        if task.state == "unreadable":
            yield f"task {task.task} can't be read: dapd task show {task.task} says what helps"


def _peers(status: StatusView) -> Iterator[str]:
    for peer in status.peers:
        if peer.state == "paused":
            yield f"{peer.endpoint} is paused: dapd peer resume {peer.endpoint}"
        elif peer.down_seconds is not None and peer.down_seconds > PEER_SILENT_SECONDS:
            down = spell(int(1000 * peer.down_seconds))
            what = "can't be reached" if peer.failures else "serves nothing"
            yield f"{peer.endpoint} {what} for {down}: dapd peer probe {peer.endpoint} says why"


def _jobs(status: StatusView) -> Iterator[str]:
    for line in status.jobs:
        if line.oldest is not None and line.oldest.waits.reason in _FOR_A_PERSON:
            job = line.oldest
            yield f"{line.kind} job {job.job} waits: dapd jobs show {job.job} says why"


def _upkeep(status: StatusView, now: datetime) -> Iterator[str]:
    until = status.certificate_until
    if until is not None and until - now < CERTIFICATE_LEFT:
        yield f"the certificate expires on {until:%Y-%m-%d %H:%M} UTC: renew it, then dapd reload"
    if status.backup_of is None:
        yield "there is no backup yet: dapd backup DIR"
    elif now - status.backup_of > BACKUP_AGE:
        yield f"the last backup is of {status.backup_of:%Y-%m-%d %H:%M} UTC: dapd backup DIR"
