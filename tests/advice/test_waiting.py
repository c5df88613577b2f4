"""Why a job waits: the first obstacle, in the order in which the dispatcher meets them."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from dapd.advice.waiting import JobFacts, PeerFacts, Reason, Surroundings, why_waiting
from dapd.protocol.states import CollectionState, HelperJobState, JobState, LeaderJobState
from dapd.protocol.task import TaskState

NOW = 1_000_000
PEER = PeerFacts("https://helper.example/", paused=False, failures=0, blocked_for=0, free=8)
JOB = JobFacts(
    "a7", LeaderJobState.STORED, NOW, leased=False, attempts=0, crashes=0, last_error=None
)
AROUND = Surroundings(NOW, "6Xf", TaskState.ACTIVE, PEER, computing=0, slots=2, running=0)
LATER = NOW + 300_000
PAUSED = replace(PEER, paused=True)
AWAY = replace(PEER, failures=3, blocked_for=5000, free=0)
FAILED_ONCE = replace(AWAY, failures=1)
PROBED = replace(AWAY, blocked_for=0, free=1)
FULL = replace(PEER, free=0)


@pytest.mark.parametrize(
    ("job", "around", "reason", "said"),
    [
        ({"state": LeaderJobState.FINISHED}, {}, Reason.ENDED, "finished"),
        ({"state": LeaderJobState.LOST, "leased": True}, {}, Reason.ENDED, "lost"),
        (
            {"state": CollectionState.FAILED, "given_up": True, "name": "c3"},
            {},
            Reason.GIVEN_UP,
            "kept for the same query",
        ),
        (
            {
                "run_at": LATER,
                "last_error": "HTTP 404",
                "refused_for": 600_000,
                "give_up_after": 3_600_000,
            },
            {},
            Reason.FAILED,
            "again in 5 minutes, and gives up if the Helper refuses it for another 50 minutes",
        ),
        ({"leased": True}, {"task_state": TaskState.DISABLED}, Reason.RUNNING, "works on it now"),
        ({}, {"task_state": None}, Reason.TASK_NOT_SERVED, "can't be read"),
        ({}, {"task_state": TaskState.DISABLED}, Reason.TASK_NOT_SERVED, "disabled"),
        ({}, {"task_state": TaskState.DELETED}, Reason.TASK_NOT_SERVED, "deleted"),
        ({}, {"task_state": TaskState.PURGED}, Reason.TASK_NOT_SERVED, "deleted"),
        ({"run_at": LATER}, {"peer": PAUSED}, Reason.PEER_PAUSED, "paused by an operator"),
        (
            {},
            {"peer": AWAY},
            Reason.PEER_UNREACHABLE,
            "3 failed requests; dapd tries it again in 5 s",
        ),
        (
            {"run_at": LATER, "last_error": "no connection"},
            {"peer": PROBED},
            Reason.PEER_UNREACHABLE,
            "3 failed requests; dapd tries it next",
        ),
        ({}, {"peer": FAILED_ONCE}, Reason.PEER_UNREACHABLE, "after 1 failed request;"),
        (
            {"run_at": LATER, "crashes": 2},
            {},
            Reason.CRASHED,
            "ended 2 times while this job ran; next in 5 m",
        ),
        ({"run_at": LATER, "crashes": 1}, {}, Reason.CRASHED, "ended 1 time while"),
        (
            {"run_at": LATER, "last_error": "HTTP 401"},
            {},
            Reason.FAILED,
            "HTTP 401; dapd tries again in 5 m",
        ),
        (
            {"run_at": LATER, "state": LeaderJobState.POLLING},
            {},
            Reason.HELPER_WORKS,
            "dapd asks again in 5 m",
        ),
        (
            {"run_at": LATER, "state": CollectionState.WAITING},
            {},
            Reason.REPORTS,
            "waits for reports",
        ),
        ({"run_at": LATER}, {}, Reason.NOT_YET, "due in 5 minutes"),
        ({"crashes": 2}, {"running": 1}, Reason.RUNS_ALONE, "waits to run alone"),
        (
            {"state": LeaderJobState.ASSIGNED},
            {"computing": 2},
            Reason.NO_SLOT,
            "all computing slots are taken",
        ),
        ({}, {"peer": FULL}, Reason.NO_PERMIT, "all the requests it may have at once"),
        ({}, {}, Reason.NEXT, "runs next"),
        ({"crashes": 2}, {}, Reason.NEXT, "runs next"),
        ({"state": CollectionState.FROZEN}, {"computing": 2}, Reason.NEXT, "runs next"),
        ({"state": HelperJobState.RECEIVED}, {"peer": None}, Reason.NEXT, "runs next"),
    ],
)
def test_the_first_obstacle_is_named(
    job: dict[str, Any], around: dict[str, Any], reason: Reason, said: str
) -> None:
    """Each reason, and which of two comes first."""
    why = why_waiting(replace(JOB, **job), replace(AROUND, **around))
    assert why.reason is reason
    assert said in why.text


@pytest.mark.parametrize(
    "state", [LeaderJobState.ASSIGNED, HelperJobState.RECEIVED, CollectionState.WAITING]
)
def test_e1_a_job_that_computes_needs_no_peer(state: JobState) -> None:
    """It runs while its peer is paused, down or busy."""
    for peer in (PAUSED, AWAY, FULL):
        why = why_waiting(replace(JOB, state=state), replace(AROUND, peer=peer))
        assert why.reason is Reason.NEXT


def test_what_a_person_can_change_has_a_command() -> None:
    """It names the job, the peer or the task, so that it can be pasted."""
    remedies = {
        why_waiting(JOB, replace(AROUND, peer=PAUSED)).remedy: "peer resume https://helper.example",
        why_waiting(JOB, replace(AROUND, peer=AWAY)).remedy: "peer probe https://helper.example/",
        why_waiting(JOB, replace(AROUND, task_state=TaskState.DISABLED)).remedy: "task enable 6Xf",
        why_waiting(JOB, replace(AROUND, task_state=None)).remedy: "task show 6Xf",
        why_waiting(replace(JOB, run_at=LATER, last_error="x"), AROUND).remedy: "jobs retry a7",
    }
    for remedy, command in remedies.items():
        assert remedy is not None
        assert f"dapd {command}" in remedy
    assert why_waiting(JOB, AROUND).remedy is None
