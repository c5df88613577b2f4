"""Why a job is not being worked on at this moment, and what somebody could do about it.

For operators: the dispatcher decides by the same facts (``dapd.driver.dispatcher``), and this says
which of them comes first. Rules D4, E1, E2. Pure: facts in, a reason out.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from dapd.protocol.states import (
    COMPUTING,
    UNFINISHED,
    CollectionState,
    JobState,
    LeaderJobState,
)
from dapd.protocol.task import TaskState


class Reason(StrEnum):
    """The first thing that has to change before the job goes on."""

    ENDED = "ended"
    RUNNING = "running"
    TASK_NOT_SERVED = "task_not_served"
    PEER_PAUSED = "peer_paused"
    PEER_UNREACHABLE = "peer_unreachable"
    CRASHED = "crashed"
    FAILED = "failed"
    HELPER_WORKS = "helper_works"
    REPORTS = "reports"
    NOT_YET = "not_yet"
    RUNS_ALONE = "runs_alone"
    NO_SLOT = "no_slot"
    NO_PERMIT = "no_permit"
    NEXT = "next"


@dataclass(frozen=True, slots=True)
class JobFacts:
    """A row of a job. Times are in ms; ``leased`` says that a step holds it now."""

    name: str
    state: JobState
    run_at: int
    leased: bool
    attempts: int
    crashes: int
    last_error: str | None


@dataclass(frozen=True, slots=True)
class PeerFacts:
    """The peer as the dispatcher sees it; ``blocked_for`` is in ms, not above 0 if it is not."""

    endpoint: str
    paused: bool
    failures: int
    blocked_for: int
    free: int


@dataclass(frozen=True, slots=True)
class Surroundings:
    """``task_state`` is ``None`` for a task that can't be read, ``peer`` for a Helper's job.

    ``computing`` and ``running`` count the jobs that steps hold now, of those that compute and of
    all.
    """

    now: int
    task_id: str
    task_state: TaskState | None
    peer: PeerFacts | None
    computing: int
    slots: int
    running: int


@dataclass(frozen=True, slots=True)
class Why:
    """``remedy`` is what to do; ``None`` where there is nothing to do but to wait."""

    reason: Reason
    text: str
    remedy: str | None = None


def why_waiting(job: JobFacts, around: Surroundings) -> Why:
    """The first of the obstacles, in the order in which the dispatcher meets them."""
    if job.state not in UNFINISHED:
        return Why(Reason.ENDED, f"it has ended: {job.state}")
    if job.leased:
        return Why(Reason.RUNNING, "a step works on it now")
    return (
        _task(around)
        or (None if job.state in COMPUTING else _peer(around))
        or (_not_due(job, around.now) if job.run_at > around.now else None)
        or _occupied(job, around)
        or Why(Reason.NEXT, "it is due and taken next")
    )


def spell(milliseconds: int) -> str:
    """A duration, in the largest unit of which there are two, to the nearest of them."""
    seconds = milliseconds / 1000
    for unit, size in (("days", 86_400), ("hours", 3600), ("minutes", 60)):
        if seconds >= 2 * size:
            return f"{seconds / size:.0f} {unit}"
    return f"{seconds:.0f} seconds"


def _task(around: Surroundings) -> Why | None:
    task = around.task_id
    match around.task_state:
        case None:
            text = "its task can't be read"
            return Why(Reason.TASK_NOT_SERVED, text, f"`dapd task show {task}` says why")
        case TaskState.DISABLED:
            text = "its task is disabled"
            return Why(Reason.TASK_NOT_SERVED, text, f"`dapd task enable {task}`")
        case TaskState.DELETED | TaskState.PURGED:
            return Why(Reason.TASK_NOT_SERVED, "its task is deleted: its rows are taken away")
        case TaskState.ACTIVE | TaskState.DRAINING:
            return None


def _peer(around: Surroundings) -> Why | None:
    peer = around.peer
    if peer is None:
        return None
    if peer.paused:
        text = f"{peer.endpoint} is paused by an operator"
        return Why(Reason.PEER_PAUSED, text, f"`dapd peer resume {peer.endpoint}`")
    if peer.failures:
        when = f"again in {spell(peer.blocked_for)}" if peer.blocked_for > 0 else "next"
        text = (
            f"{peer.endpoint} can't be reached, {peer.failures} times in a row; it is tried {when}"
        )
        return Why(Reason.PEER_UNREACHABLE, text, f"`dapd peer probe {peer.endpoint}` says why")
    return None


def _not_due(job: JobFacts, now: int) -> Why:
    wait = spell(job.run_at - now)
    if job.crashes:
        text = f"the daemon has ended {job.crashes} times while it ran; it is tried in {wait}"
        return Why(Reason.CRASHED, text, "look in the log for what ended the daemon then")
    if job.last_error is not None:
        text = f"it failed, {job.attempts} times in a row: {job.last_error}; again in {wait}"
        remedy = f"mend what it names, then `dapd jobs retry {job.name}`"
        return Why(Reason.FAILED, text, remedy)
    match job.state:
        case LeaderJobState.POLLING | CollectionState.POLLING:
            return Why(Reason.HELPER_WORKS, f"the Helper works on it; it is asked again in {wait}")
        case CollectionState.WAITING:
            text = f"it waits for its reports; it is looked at when one comes, or in {wait}"
            return Why(Reason.REPORTS, text)
        case _:
            return Why(Reason.NOT_YET, f"it is due in {wait}")


def _occupied(job: JobFacts, around: Surroundings) -> Why | None:
    if job.crashes > 1 and around.running:
        text = f"the daemon has ended {job.crashes} times while it ran: it runs alone, after others"
        return Why(Reason.RUNS_ALONE, text)
    if job.state in COMPUTING:
        if around.computing < around.slots:
            return None
        return Why(Reason.NO_SLOT, f"all {around.slots} computing slots are taken")
    if around.peer is None or around.peer.free > 0:
        return None
    return Why(Reason.NO_PERMIT, f"{around.peer.endpoint} has all the requests it may have at once")
