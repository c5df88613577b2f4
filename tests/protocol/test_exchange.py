"""What a Leader makes of each answer: the table of ``dapd.protocol.exchange``, row by row."""

from __future__ import annotations

from dataclasses import dataclass, replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dapd.protocol.exchange import (
    FINAL_COLLECTION_REFUSALS,
    GivenUp,
    Later,
    Moment,
    Refusals,
    Standing,
    Unusable,
    judge,
)
from dapd.protocol.outcome import Outcome, Processing, Ready, Refused, Unknown
from dapd.protocol.states import Kind

DAY = 86_400
NOW = 1_000_000
SAFE = 7_000_000
GIVE_UP: dict[Kind, float] = {"aggregation": 7 * DAY, "collection": 3600}
MOMENT = Moment(
    NOW,
    SAFE,
    retry_min=1,
    retry_max=600,
    poll_min=0.25,
    poll_max=60,
    give_up_after=GIVE_UP,
    jitter=0,
)
HERE, THERE = "https://helper.example/jobs/1", "https://helper.example/jobs/2"
KINDS: tuple[Kind, ...] = ("aggregation", "collection")
BEFORE = Refusals(1000, SAFE - 500)
RUNS, STOPPED, CLEARED = Refusals(1500, SAFE), Refusals(1000), Refusals()
REFUSED = (RUNS, RUNS)
TO_A_POLL = (BEFORE, CLEARED)


@dataclass(frozen=True)
class Row:
    """An answer to a job that was sent and to one that was polled, both after three attempts.

    ``sent_next`` and ``polled_next`` are the Locations of the next exchange, ``None`` to send;
    ``seconds`` is the wait, ``attempts`` what is counted then, ``clocks`` the clocks of refusals.
    """

    answer: Outcome | Unusable
    sent_next: str | None
    polled_next: str | None
    seconds: tuple[float, float]
    attempts: tuple[int, int]
    alarm: bool = False
    clocks: tuple[Refusals, Refusals] = (STOPPED, STOPPED)


ROWS = {
    "Processing, as told": Row(
        Processing(THERE, 7.0), THERE, THERE, (7, 7), (0, 0), clocks=TO_A_POLL
    ),
    "Processing, told 0": Row(
        Processing(THERE, 0.0), THERE, THERE, (0.25, 0.25), (0, 0), clocks=TO_A_POLL
    ),
    "Processing, told more than poll_max": Row(
        Processing(THERE, 5000.0), THERE, THERE, (5000, 5000), (0, 0), clocks=TO_A_POLL
    ),
    "Processing, told more than a day": Row(
        Processing(THERE, 1e9), THERE, THERE, (DAY, DAY), (0, 0), clocks=TO_A_POLL
    ),
    "Processing, not told": Row(Processing(THERE), THERE, THERE, (1, 8), (1, 4), clocks=TO_A_POLL),
    "Refused": Row(
        Refused(403, None, "no"), None, None, (128, 128), (4, 4), alarm=True, clocks=REFUSED
    ),
    "Refused, as told": Row(
        Refused(404, "unrecognizedTask", "", 9.0),
        None,
        None,
        (9, 9),
        (4, 4),
        alarm=True,
        clocks=REFUSED,
    ),
    "Unusable": Row(
        Unusable("garbage"), None, None, (128, 128), (4, 4), alarm=True, clocks=REFUSED
    ),
    "busy, as told": Row(Unknown("", 503, 5000.0), None, HERE, (5000, 5000), (3, 3)),
    "busy, told 0": Row(Unknown("", 429, 0.0), None, HERE, (1, 1), (3, 3)),
    "busy, not told": Row(Unknown("", 429), None, HERE, (4, 4), (3, 3)),
    "no answer": Row(Unknown("cut"), None, HERE, (8, 8), (4, 4)),
    "408": Row(Unknown("", 408), None, HERE, (8, 8), (4, 4)),
    "425": Row(Unknown("", 425), None, HERE, (8, 8), (4, 4)),
    "502": Row(Unknown("", 502), None, HERE, (8, 8), (4, 4)),
    "500, as told": Row(Unknown("", 500, 30.0), None, HERE, (30, 30), (4, 4)),
    "a redirect": Row(Unknown("", 302), None, None, (8, 8), (4, 4), clocks=REFUSED),
    "a redirect, as told": Row(
        Unknown("", 307, 1e9), None, None, (DAY, DAY), (4, 4), clocks=REFUSED
    ),
    "a wrong media type": Row(Unknown("", 200), None, None, (8, 8), (4, 4), clocks=REFUSED),
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("row", ROWS.values(), ids=ROWS.keys())
def test_a_job_that_goes_on_goes_on_as_the_table_says(kind: Kind, row: Row) -> None:
    """The same answer means the same to an aggregation job and to a collection (D4, E1, I4)."""
    sent = Standing(kind, None, attempts=3, sends=2, refusals=BEFORE)
    polled = replace(sent, location=HERE)
    reason = getattr(row.answer, "reason", None)
    for standing, location, seconds, attempts, clock in zip(
        (sent, polled),
        (row.sent_next, row.polled_next),
        row.seconds,
        row.attempts,
        row.clocks,
        strict=True,
    ):
        run_at = NOW + int(1000 * seconds)
        expected = Later(location, run_at, attempts, 2, reason, row.alarm, clock)
        assert judge(standing, row.answer, MOMENT) == expected


@pytest.mark.parametrize("kind", KINDS)
def test_a_ready_answer_finishes_the_job(kind: Kind) -> None:
    """The representation is handed on as it came, whether it was sent for or polled."""
    ready = Ready(b"body", THERE)
    for location in (None, HERE):
        assert judge(Standing(kind, location, 3, 2), ready, MOMENT) is ready


LARGE, INVALID = Refused(413, None, "large"), Refused(400, "invalidMessage", "bad")


@pytest.mark.parametrize(("refused", "location"), [(LARGE, None), (INVALID, None), (INVALID, HERE)])
def test_d4_an_aggregation_job_ends_by_a_refusal_of_its_first_send_alone(
    refused: Refused, location: str | None
) -> None:
    """D4: at any later send, an earlier one may have been stored.

    A Helper may find only after its answer that the request is invalid, and say so to a poll.
    """
    assert judge(Standing("aggregation", location, 0, 1), refused, MOMENT) is refused
    later = judge(Standing("aggregation", location, 0, 2), refused, MOMENT)
    assert later == Later(None, NOW + 16_000, 1, 2, refused.reason, True, Refusals(0, SAFE))


def test_d4_a_proxy_that_refuses_a_poll_as_too_large_ends_no_job() -> None:
    """The Helper has accepted the job, and may have committed it."""
    later = judge(Standing("aggregation", HERE, 0, 1), LARGE, MOMENT)
    assert later == Later(None, NOW + 16_000, 1, 1, LARGE.reason, True, Refusals(0, SAFE))


@pytest.mark.parametrize("refused", [Refused(413, None, ""), Refused(400, "invalidMessage", "")])
def test_d5_a_final_refusal_by_a_helper_that_never_accepted_a_job_waits(refused: Refused) -> None:
    """D5: the pair's configuration may be at fault; the next send is the job's first again."""
    standing = Standing("aggregation", None, 3, 1, accepted=False)
    expected = Later(None, NOW + 128_000, 4, 0, refused.reason, True, Refusals(0, SAFE))
    assert judge(standing, refused, MOMENT) == expected


@pytest.mark.parametrize("type", sorted(FINAL_COLLECTION_REFUSALS))
@pytest.mark.parametrize("sends", [1, 2])
@pytest.mark.parametrize("location", [None, HERE])
def test_d4_a_collection_ends_by_an_error_of_its_batch_at_any_send(
    type: str, sends: int, location: str | None
) -> None:
    """D4: these errors are judgements of the batch or the query, which no repetition changes."""
    refused = Refused(400, type, "no")
    assert judge(Standing("collection", location, 0, sends), refused, MOMENT) is refused


@pytest.mark.parametrize("status", [400, 401, 403, 404, 405, 415, 422])
@pytest.mark.parametrize(
    "type",
    [
        "unrecognizedTask",
        "unrecognizedAggregationJob",
        "stepMismatch",
        "invalidAggregationParameter",
        None,
    ],
)
@pytest.mark.parametrize("kind", KINDS)
def test_d4_no_other_refusal_ends_a_job(kind: Kind, status: int, type: str | None) -> None:
    """D4: they tell of the pair's configuration or of lost state, and an operator is told."""
    later = judge(Standing(kind, None, 0, 1), Refused(status, type, ""), MOMENT)
    assert isinstance(later, Later)
    assert later.alarm


@pytest.mark.parametrize("kind", KINDS)
def test_polls_without_retry_after_become_rarer(kind: Kind) -> None:
    """I5: exponential back-off up to ``poll_max``, from the start when polling begins."""
    waits = []
    standing = Standing(kind, None, 3, 1)
    for _ in range(8):
        later = judge(standing, Processing(HERE), MOMENT)
        assert isinstance(later, Later)
        waits.append((later.run_at - NOW) // 1000)
        standing = replace(standing, location=later.location, attempts=later.attempts)
    assert waits == [1, 2, 4, 8, 16, 32, 60, 60]


@given(
    status=st.none() | st.integers(200, 599),
    told=st.none() | st.floats(0, 1e12),
    attempts=st.integers(0, 10**6),
    location=st.none() | st.just(HERE),
    kind=st.sampled_from(KINDS),
)
def test_i4_an_unknown_outcome_always_goes_on_in_bounded_time(
    status: int | None, told: float | None, attempts: int, location: str | None, kind: Kind
) -> None:
    """I4: no number of errors ends a job, its sends stay counted, and it waits a day at most."""
    standing = Standing(kind, location, attempts, 5)
    later = judge(standing, Unknown("why", status, told), MOMENT)
    assert isinstance(later, Later)
    assert later.sends == 5
    assert NOW < later.run_at <= NOW + 1000 * DAY
    assert later.location in (None, location)


SEC = 1000


@dataclass
class Ordeal:
    """A job, and what its peer answers in the course of time."""

    kind: Kind
    refusals: Refusals = CLEARED
    safe: int = SAFE

    def answers(
        self, outcome: Outcome | Unusable, after: float, location: str | None = None
    ) -> object:
        """What comes next if the peer answers this, so many seconds after the last answer."""
        self.safe += int(after * SEC)
        standing = Standing(self.kind, location, 0, 2, refusals=self.refusals)
        following = judge(standing, outcome, replace(MOMENT, safe=self.safe))
        if isinstance(following, Later):
            self.refusals = following.refusals
        return following

    def goes_on(
        self, outcome: Outcome | Unusable, after: float, location: str | None = None
    ) -> bool:
        return isinstance(self.answers(outcome, after, location), Later)


UNKNOWN_TASK = Refused(404, "unrecognizedTask", "who?")
REFUSALS: list[Refused | Unusable | Unknown] = [
    UNKNOWN_TASK,
    Refused(403, None, ""),
    Unusable("garbage"),
    Unknown("html", 200),
]
OUTAGES = [Unknown("cut"), Unknown("", 500), Unknown("", 503), Unknown("", 429), Unknown("", 408)]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("answer", REFUSALS)
def test_d4_a_job_is_given_up_once_it_was_refused_for_long_enough(
    kind: Kind, answer: Refused | Unusable | Unknown
) -> None:
    """The answer that brings the clock to its bound is the last try; time alone ends nothing."""
    ordeal, bound = Ordeal(kind), GIVE_UP[kind]
    assert ordeal.goes_on(answer, 10 * bound)
    assert ordeal.goes_on(answer, bound - 1)
    type_ = answer.type if isinstance(answer, Refused) else None
    assert ordeal.answers(answer, 1) == GivenUp(type_, answer.reason, int(bound * SEC), 2)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("outage", OUTAGES)
def test_d4_an_outage_gives_nothing_up_however_long(kind: Kind, outage: Outcome) -> None:
    """Not even with refusals before and after it: 404, an outage, 404 is a proxy that starts before
    its Helper.
    """
    ordeal, bound = Ordeal(kind), GIVE_UP[kind]
    for _ in range(3):
        assert ordeal.goes_on(UNKNOWN_TASK, bound + 60)
        for _ in range(61):
            assert ordeal.goes_on(outage, bound / 60)
    assert ordeal.refusals.ms == 0


@pytest.mark.parametrize("kind", KINDS)
def test_d4_an_outage_forgives_nothing(kind: Kind) -> None:
    """A peer that refuses and is away by turns is given up by the time in which it refused."""
    ordeal, bound = Ordeal(kind), GIVE_UP[kind]
    for _ in range(3):
        assert ordeal.goes_on(UNKNOWN_TASK, bound)
        assert ordeal.goes_on(UNKNOWN_TASK, bound / 3 - 1)
        assert ordeal.goes_on(Unknown("cut"), bound)
    assert ordeal.goes_on(UNKNOWN_TASK, bound)
    assert isinstance(ordeal.answers(UNKNOWN_TASK, 3), GivenUp)


@pytest.mark.parametrize("kind", KINDS)
def test_d4_a_helper_that_works_on_the_job_is_forgiven(kind: Kind) -> None:
    """Only an answer to a poll says so: one that gives out Locations and then refuses them works on
    nothing.
    """
    ordeal, bound = Ordeal(kind), GIVE_UP[kind]
    assert ordeal.goes_on(UNKNOWN_TASK, 0)
    assert ordeal.goes_on(Processing(HERE), bound / 2)
    assert ordeal.goes_on(UNKNOWN_TASK, bound / 2 - 1, HERE)
    assert ordeal.goes_on(Processing(HERE), 1)
    assert ordeal.goes_on(Processing(HERE), 1, HERE)
    assert ordeal.goes_on(UNKNOWN_TASK, 1, HERE)
    assert ordeal.goes_on(UNKNOWN_TASK, bound - 1)
    assert isinstance(ordeal.answers(UNKNOWN_TASK, 1), GivenUp)


def test_d4_a_clock_that_an_operator_sets_back_takes_nothing_off() -> None:
    """`dapd clock accept` may lower the safe clock."""
    ordeal = Ordeal("collection", Refusals(3_000_000, SAFE))
    assert ordeal.goes_on(UNKNOWN_TASK, -1000)
    assert ordeal.refusals == Refusals(3_000_000, SAFE - 1_000_000)


@pytest.mark.parametrize(("shown", "wait"), [(3_598_000, 16), (3_500_000, 100), (0, 600)])
def test_d4_the_last_try_comes_when_the_clock_may_reach_its_bound(shown: int, wait: int) -> None:
    """The Collector need not wait ten minutes longer; a held clock doesn't make tries frequent."""
    standing = Standing("collection", None, 30, 30, refusals=Refusals(shown, SAFE))
    later = judge(standing, UNKNOWN_TASK, MOMENT)
    assert isinstance(later, Later)
    assert later.run_at == NOW + wait * SEC


def test_a_retry_after_longer_than_the_bound_is_obeyed() -> None:
    """The draft says SHOULD; then the last try is that late."""
    standing = Standing("collection", None, 30, 30, refusals=Refusals(3_500_000, SAFE))
    later = judge(standing, replace(UNKNOWN_TASK, retry_after=7200.0), MOMENT)
    assert isinstance(later, Later)
    assert later.run_at == NOW + 7200 * SEC
