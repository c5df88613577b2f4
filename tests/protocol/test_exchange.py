"""What a Leader makes of each answer: the table of ``dapd.protocol.exchange``, row by row."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dapd.protocol.exchange import (
    FINAL_COLLECTION_REFUSALS,
    Later,
    Moment,
    Standing,
    Unusable,
    judge,
)
from dapd.protocol.outcome import Outcome, Processing, Ready, Refused, Unknown

DAY = 86_400
NOW = 1_000_000
MOMENT = Moment(NOW, retry_min=1, retry_max=600, poll_min=0.25, poll_max=60, jitter=0)
HERE, THERE = "https://helper.example/jobs/1", "https://helper.example/jobs/2"
Kind = Literal["aggregation", "collection"]
KINDS: tuple[Kind, ...] = ("aggregation", "collection")


@dataclass(frozen=True)
class Row:
    """An answer to a job that was sent and to one that was polled, both after three attempts.

    ``sent_next`` and ``polled_next`` are the Locations of the next exchange, ``None`` to send;
    ``seconds`` is the wait, ``attempts`` what is counted then.
    """

    answer: Outcome | Unusable
    sent_next: str | None
    polled_next: str | None
    seconds: tuple[float, float]
    attempts: tuple[int, int]
    alarm: bool = False


ROWS = {
    "Processing, as told": Row(Processing(THERE, 7.0), THERE, THERE, (7, 7), (0, 0)),
    "Processing, told 0": Row(Processing(THERE, 0.0), THERE, THERE, (0.25, 0.25), (0, 0)),
    "Processing, told more than poll_max": Row(
        Processing(THERE, 5000.0), THERE, THERE, (5000, 5000), (0, 0)
    ),
    "Processing, told more than a day": Row(
        Processing(THERE, 1e9), THERE, THERE, (DAY, DAY), (0, 0)
    ),
    "Processing, not told": Row(Processing(THERE), THERE, THERE, (1, 8), (1, 4)),
    "Refused": Row(Refused(403, None, "no"), None, None, (128, 128), (4, 4), alarm=True),
    "Refused, as told": Row(
        Refused(404, "unrecognizedTask", "", 9.0), None, None, (9, 9), (4, 4), alarm=True
    ),
    "Unusable": Row(Unusable("garbage"), None, None, (128, 128), (4, 4), alarm=True),
    "busy, as told": Row(Unknown("", 503, 5000.0), None, HERE, (5000, 5000), (3, 3)),
    "busy, told 0": Row(Unknown("", 429, 0.0), None, HERE, (1, 1), (3, 3)),
    "busy, not told": Row(Unknown("", 429), None, HERE, (4, 4), (3, 3)),
    "no answer": Row(Unknown("cut"), None, HERE, (8, 8), (4, 4)),
    "408": Row(Unknown("", 408), None, HERE, (8, 8), (4, 4)),
    "425": Row(Unknown("", 425), None, HERE, (8, 8), (4, 4)),
    "502": Row(Unknown("", 502), None, HERE, (8, 8), (4, 4)),
    "500, as told": Row(Unknown("", 500, 30.0), None, HERE, (30, 30), (4, 4)),
    "a redirect": Row(Unknown("", 302), None, None, (8, 8), (4, 4)),
    "a redirect, as told": Row(Unknown("", 307, 1e9), None, None, (DAY, DAY), (4, 4)),
    "a wrong media type": Row(Unknown("", 200), None, None, (8, 8), (4, 4)),
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("row", ROWS.values(), ids=ROWS.keys())
def test_a_job_that_goes_on_goes_on_as_the_table_says(kind: Kind, row: Row) -> None:
    """The same answer means the same to an aggregation job and to a collection (D4, E1, I4)."""
    sent = Standing(kind, None, attempts=3, sends=2)
    polled = replace(sent, location=HERE)
    reason = getattr(row.answer, "reason", None)
    for standing, location, seconds, attempts in zip(
        (sent, polled), (row.sent_next, row.polled_next), row.seconds, row.attempts, strict=True
    ):
        run_at = NOW + int(1000 * seconds)
        expected = Later(location, run_at, attempts, 2, reason, row.alarm)
        assert judge(standing, row.answer, MOMENT) == expected


@pytest.mark.parametrize("kind", KINDS)
def test_a_ready_answer_finishes_the_job(kind: Kind) -> None:
    """The representation is handed on as it came, whether it was sent for or polled."""
    ready = Ready(b"body", THERE)
    for location in (None, HERE):
        assert judge(Standing(kind, location, 3, 2), ready, MOMENT) is ready


@pytest.mark.parametrize("location", [None, HERE])
@pytest.mark.parametrize(
    "refused", [Refused(413, None, "large"), Refused(400, "invalidMessage", "bad")]
)
def test_d4_an_aggregation_job_ends_by_a_refusal_of_its_first_send_alone(
    refused: Refused, location: str | None
) -> None:
    """D4: at any later send, an earlier one may have been stored."""
    assert judge(Standing("aggregation", location, 0, 1), refused, MOMENT) is refused
    later = judge(Standing("aggregation", location, 0, 2), refused, MOMENT)
    assert later == Later(None, NOW + 16_000, 1, 2, refused.reason, alarm=True)


@pytest.mark.parametrize("refused", [Refused(413, None, ""), Refused(400, "invalidMessage", "")])
def test_d5_a_final_refusal_by_a_helper_that_never_accepted_a_job_waits(refused: Refused) -> None:
    """D5: the pair's configuration may be at fault; the next send is the job's first again."""
    standing = Standing("aggregation", None, 3, 1, accepted=False)
    expected = Later(None, NOW + 128_000, 4, 0, refused.reason, alarm=True)
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
