"""Why a job doesn't run now, and what an operator could do about it.

The dispatcher decides by the same facts (``dapd.driver.dispatcher``); this names the first of them.
Rules D4, E1, E2. Pure: facts in, a reason out.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from dapd.advice import Advice, peer, upkeep
from dapd.protocol.states import (
    COMPUTING,
    UNFINISHED,
    CollectionState,
    JobState,
    LeaderJobState,
)
from dapd.protocol.task import TaskState
from dapd.wording import count, duration


class Reason(StrEnum):
    """The first thing that must change before the job runs."""

    ENDED = "ended"
    GIVEN_UP = "given_up"
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
    """A job's row. Times are in ms; ``leased`` says that a step holds the job now.

    The peer has refused the job for ``refused_for``, and it is given up at ``give_up_after``.
    ``given_up`` is for a collection whose batch is kept for the same query.
    """

    name: str
    state: JobState
    run_at: int
    leased: bool
    attempts: int
    crashes: int
    last_error: str | None
    refused_for: int = 0
    give_up_after: int = 0
    given_up: bool = False


@dataclass(frozen=True, slots=True)
class PeerFacts:
    """The peer as the dispatcher sees it. ``blocked_for`` is in ms, 0 or less once it may be tried;
    ``free`` counts the requests that may start now.
    """

    endpoint: str
    paused: bool
    failures: int
    blocked_for: int
    free: int


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What else the dispatcher goes by.

    ``task_state`` is ``None`` for a task that can't be read, ``peer`` for a Helper's job. Steps
    hold ``running`` jobs now, of which ``computing`` are in a state that computes.
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
    """The answer. ``remedy`` is what to do; ``None`` if only waiting helps."""

    reason: Reason
    text: str
    remedy: str | None = None


def why_waiting(job: JobFacts, around: Surroundings) -> Why:
    """Return the first obstacle, in the order in which the dispatcher meets them."""
    if job.given_up:
        return _advised(Reason.GIVEN_UP, upkeep.given_up(job.name))
    if job.state not in UNFINISHED:
        return Why(Reason.ENDED, f"it has ended: {job.state}")
    if job.leased:
        return Why(Reason.RUNNING, "a step works on it now")
    return (
        _task(around)
        or (None if job.state in COMPUTING else _peer(around))
        or (_not_due(job, around.now) if job.run_at > around.now else None)
        or _occupied(job, around)
        or Why(Reason.NEXT, "it is due and runs next")
    )


def _task(around: Surroundings) -> Why | None:
    task = around.task_id
    match around.task_state:
        case None:
            return _advised(Reason.TASK_NOT_SERVED, upkeep.unreadable(task))
        case TaskState.DISABLED:
            text = "its task is disabled"
            return Why(Reason.TASK_NOT_SERVED, text, f"`dapd task enable {task}`")
        case TaskState.DELETED | TaskState.PURGED:
            return Why(Reason.TASK_NOT_SERVED, "its task is deleted, and the job goes with it")
        case TaskState.ACTIVE | TaskState.DRAINING:
            return None


def _peer(around: Surroundings) -> Why | None:
    facts = around.peer
    if facts is None:
        return None
    if facts.paused:
        return _advised(Reason.PEER_PAUSED, peer.paused(facts.endpoint))
    if facts.failures:
        advice = peer.failing(facts.endpoint, facts.failures, facts.blocked_for)
        return _advised(Reason.PEER_UNREACHABLE, advice)
    return None


def _advised(reason: Reason, advice: Advice) -> Why:
    return Why(reason, advice.problem, advice.remedy)


def _not_due(job: JobFacts, now: int) -> Why:
    wait = duration(job.run_at - now)
    if job.crashes:
        text = f"the daemon ended {count(job.crashes, 'time')} while this job ran; next in {wait}"
        return Why(Reason.CRASHED, text, "see in the log what ended the daemon")
    if job.last_error is not None:
        text = f"it failed: {job.last_error}; dapd tries again in {wait}"
        if job.refused_for:
            left = max(0, job.give_up_after - job.refused_for)
            text += f", and gives up if the Helper refuses it for another {duration(left)}"
        remedy = f"fix what the error names, then `dapd jobs retry {job.name}`"
        return Why(Reason.FAILED, text, remedy)
    match job.state:
        case LeaderJobState.POLLING | CollectionState.POLLING:
            return Why(Reason.HELPER_WORKS, f"the Helper works on it; dapd asks again in {wait}")
        case CollectionState.WAITING:
            text = f"it waits for reports; dapd looks again when some come, or in {wait}"
            return Why(Reason.REPORTS, text)
        case _:
            return Why(Reason.NOT_YET, f"it is due in {wait}")


def _occupied(job: JobFacts, around: Surroundings) -> Why | None:
    if job.crashes > 1 and around.running:
        times = count(job.crashes, "time")
        text = f"the daemon ended {times} while this job ran, so it waits to run alone"
        return Why(Reason.RUNS_ALONE, text)
    if job.state in COMPUTING:
        if around.computing < around.slots:
            return None
        slots = "the one computing slot is" if around.slots == 1 else "all computing slots are"
        return Why(Reason.NO_SLOT, f"{slots} taken")
    if around.peer is None or around.peer.free > 0:
        return None
    return Why(Reason.NO_PERMIT, f"{around.peer.endpoint} has all the requests it may have at once")
