"""What a person must do, given the daemon's status, the most urgent first.

Nothing that the daemon gets over by itself is on the list. Pure. Left out: the words and the
thresholds (``dapd.advice``).
"""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime
from typing import TYPE_CHECKING

from dapd.advice import Advice, peer, upkeep
from dapd.advice.waiting import Reason

if TYPE_CHECKING:
    from dapd.admin.status import StatusView

_FOR_A_PERSON = (Reason.FAILED, Reason.CRASHED)
"""Reasons of a waiting job that nothing else in the status tells."""


def what_to_do(status: StatusView, now: datetime) -> tuple[str, ...]:
    """Return a sentence for each thing that a person must do."""
    return tuple(str(each) for each in _advice(status, now) if each is not None)


def only_the_daemon_knows(status: StatusView) -> Iterator[Advice]:
    """Yield the advice that neither a file nor the database gives."""
    for each in (*_peers(status), *_jobs(status), upkeep.restart(status.restart_for)):
        if each is not None:
            yield each


def _advice(status: StatusView, now: datetime) -> Iterator[Advice | None]:
    yield upkeep.disk(status.disk.free, status.disk.refused_below)
    yield upkeep.hpke_keys([key.state for key in status.keys])
    yield upkeep.clock(status.clock.held)
    for task in status.tasks:
        yield upkeep.collection(task.task, task.collect_before, now)
    for task in status.tasks:
        if task.state == "unreadable":
            yield upkeep.unreadable(task.task)
    yield from only_the_daemon_knows(status)
    for name in status.given_up:
        yield upkeep.given_up(name)
    yield upkeep.certificate(status.certificate_until, now)
    yield upkeep.backup(status.backup_of, now)


def _peers(status: StatusView) -> Iterator[Advice | None]:
    for each in status.peers:
        if each.state == "paused":
            yield peer.paused(each.endpoint)
        else:
            yield peer.down(each.endpoint, each.down_seconds, answers=not each.failures)


def _jobs(status: StatusView) -> Iterator[Advice]:
    for line in status.jobs:
        if line.oldest is not None and line.oldest.waits.reason in _FOR_A_PERSON:
            yield upkeep.job(line.kind, line.oldest.job)
