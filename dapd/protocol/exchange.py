"""Decide what a job does after the peer's answer: finish, end, or try again and when.

One pure function, ``judge``, serves aggregation jobs and collections alike. Sections "Leader
Initialization", "Obtaining Aggregate Shares", "Asynchronous Request Handling"; rules A5, B5, D4,
D5, E1, I4.

An exchange either sends a job's stored bytes or polls its Location. To *repeat* it is to do the
same again; to *send* is to drop the Location and send the stored bytes: if an earlier send has
created the resource, the peer finds it by these bytes (rule A1).

============================================= ========= ========================= ========= ========
the answer                                    next      when                      attempts  clock
============================================= ========= ========================= ========= ========
Ready                                         finish    now
Processing with Retry-After                   poll      as told, after poll_min   0         0 [3]_
Processing without Retry-After                poll      back-off, within poll_max polls     0 [3]_
Refused, and final (D4)                       end       now
Refused, final, never accepted a job (D5)     send [1]_ long back-off; alarm      + 1       runs
Refused otherwise                             send      as told or long back-off; + 1       runs
                                                        alarm
Unusable: decodes to nothing that fits (B5)   send      long back-off; alarm      + 1       runs
Unknown: 429, 503 (E1)                        repeat    as told or back-off       as before stops
Unknown: no answer, 408, 425, other 5xx       repeat    as told or back-off       + 1       stops
Unknown otherwise: 3xx [2]_, wrong media type send      as told or back-off       + 1       runs
============================================= ========= ========================= ========= ========

.. [1] As a first send: the peer has stored none of the earlier ones.
.. [2] Except that the HTTP client follows a 307 or 308 within the origin (A5).
.. [3] To a poll. To a send, the clock goes on: the Location may be refused as before.

The *clock* says how long the peer itself has refused the job, or answered it with nothing usable.
It counts the time between two such answers in a row, and nothing else, so an outage never counts:
``dapd.driver.step`` stops it, too, while the job is not sent because the peer is away or paused.
An answer that brings it to ``give_up_after`` ends the job as ``GivenUp`` (rule D4).

*As told* is the answer's Retry-After, at least ``retry_min`` and at most a day. *Back-off* doubles
with each attempt up to ``retry_max``; *long back-off* starts four doublings ahead, for what trying
again soon won't fix, because a configuration must change first. It ends early when the clock may
reach its bound. *polls*: how many in a row the peer has answered without Retry-After.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import assert_never

from dapd.protocol.outcome import Outcome, Processing, Ready, Refused, Unknown
from dapd.protocol.retry import LONGEST_RETRY_AFTER, backoff_ms
from dapd.protocol.states import Kind

FINAL_COLLECTION_REFUSALS = frozenset(
    {
        "invalidMessage",
        "batchInvalid",
        "batchOverlap",
        "invalidBatchSize",
        "unsupportedExtension",
        "invalidExtension",
        "batchMismatch",
    }
)
"""The errors that end a collection at any send; after any other it sends again (D4)."""
_LONG = 4
"""How many doublings a long back-off starts ahead."""


@dataclass(frozen=True, slots=True)
class Refusals:
    """The clock of a job that its peer refuses: it shows ``ms``. ``last`` is the safe time (ms) of
    the job's last answer if that was a refusal or nothing usable, else ``None``.
    """

    ms: int = 0
    last: int | None = None

    def again(self, safe: int) -> Refusals:
        """Count the time since the last answer, if that was a refusal too."""
        passed = 0 if self.last is None else max(0, safe - self.last)
        return Refusals(self.ms + passed, safe)

    def interrupted(self) -> Refusals:
        """Stop the clock until two refusals come in a row again."""
        return Refusals(self.ms)


@dataclass(frozen=True, slots=True)
class Standing:
    """Where a job was before the exchange.

    ``location`` was polled; if it is ``None``, the stored bytes were sent, for the ``sends``-th
    time. ``attempts`` counts the failures since the last success, or the polls in a row that were
    answered without Retry-After. ``accepted``: the peer has accepted some job of this task before.
    """

    kind: Kind
    location: str | None
    attempts: int
    sends: int
    accepted: bool = True
    refusals: Refusals = Refusals()


@dataclass(frozen=True, slots=True)
class Moment:
    """The present time (ms), by the machine's clock and the safe one, and the configured waits (s).

    ``give_up_after`` bounds the clock of each kind of job; ``jitter`` is in [0, 1).
    """

    now: int
    safe: int
    retry_min: float
    retry_max: float
    poll_min: float
    poll_max: float
    give_up_after: Mapping[Kind, float]
    jitter: float

    def backoff(self, attempt: int) -> int:
        """Return when (ms) to try again after ``attempt`` failures."""
        return self.now + backoff_ms(attempt, self.retry_min, self.retry_max, self.jitter)

    def as_told(self, retry_after: float, shortest: float) -> int:
        """Return when (ms) to try again after a Retry-After of ``retry_after`` seconds."""
        return self.now + int(1000 * min(max(retry_after, shortest), LONGEST_RETRY_AFTER))


@dataclass(frozen=True, slots=True)
class Unusable:
    """A response that can't be decoded, or doesn't fit the request (B5)."""

    reason: str


@dataclass(frozen=True, slots=True)
class Later:
    """The job's next exchange, at ``run_at`` (ms): poll ``location``, or send if it is ``None``.

    ``sends`` counts the sends whose outcome is unknown. ``alarm``: only an operator can fix this.
    """

    location: str | None
    run_at: int
    attempts: int
    sends: int
    error: str | None = None
    alarm: bool = False
    refusals: Refusals = Refusals()


@dataclass(frozen=True, slots=True)
class GivenUp:
    """The peer has refused the job for ``ms``, longer than its bound; ``reason`` is its last
    answer in words. ``type`` is the error token in that answer, if there was one. ``sends`` counts
    the sends whose outcome is unknown.
    """

    type: str | None
    reason: str
    ms: int
    sends: int


Verdict = Ready | Refused | GivenUp | Later


def judge(standing: Standing, outcome: Outcome | Unusable, moment: Moment) -> Verdict:
    """Return what comes next: ``Ready`` to finish the job, ``Refused`` to end it, ``GivenUp`` to
    give it up, ``Later`` to try again.
    """
    following = _next(standing, outcome, moment)
    if not isinstance(following, Later):
        return following
    before = standing.refusals
    if isinstance(outcome, Processing):
        return replace(following, refusals=Refusals() if standing.location else before)
    if isinstance(outcome, Unknown) and outcome.transient:
        return replace(following, refusals=before.interrupted())
    after = before.again(moment.safe)
    if after.ms >= 1000 * moment.give_up_after[standing.kind]:
        type_ = outcome.type if isinstance(outcome, Refused) else None
        return GivenUp(type_, following.error or "", after.ms, following.sends)
    if _told(outcome) is None:
        # Ask again when the clock may reach its bound. A safe clock that is held must not make
        # that often.
        left = int(1000 * moment.give_up_after[standing.kind]) - after.ms
        soonest = max(moment.now + left, moment.backoff(1 + _LONG))
        following = replace(following, run_at=min(following.run_at, soonest))
    return replace(following, refusals=after)


def _told(outcome: Outcome | Unusable) -> float | None:
    return outcome.retry_after if isinstance(outcome, Refused | Unknown) else None


def _next(
    standing: Standing, outcome: Outcome | Unusable, moment: Moment
) -> Ready | Refused | Later:
    match outcome:
        case Ready():
            return outcome
        case Processing():
            return _poll(standing, outcome, moment)
        case Refused():
            return _refused(standing, outcome, moment)
        case Unusable(reason):
            return _send_much_later(standing, reason, moment)
        case Unknown():
            return _try_again(standing, outcome, moment)
        case _:
            assert_never(outcome)


def _poll(standing: Standing, answer: Processing, moment: Moment) -> Later:
    if answer.retry_after is not None:
        run_at = moment.as_told(answer.retry_after, moment.poll_min)
        return Later(answer.location, run_at, 0, standing.sends)
    polls = 1 if standing.location is None else standing.attempts + 1
    run_at = min(moment.backoff(polls), moment.now + int(1000 * moment.poll_max))
    return Later(answer.location, run_at, polls, standing.sends)


def _refused(standing: Standing, answer: Refused, moment: Moment) -> Refused | Later:
    if not _is_final(standing, answer):
        told = answer.retry_after
        return _send_much_later(standing, answer.reason, moment, told=told)
    if standing.accepted:
        return answer
    # D5: the two configurations may not match, so the job waits. The peer has not stored it.
    return _send_much_later(standing, answer.reason, moment, sends=0)


def _is_final(standing: Standing, answer: Refused) -> bool:
    """Return whether the peer has judged these bytes and can't have stored them before (D4)."""
    match standing.kind:
        case "aggregation":
            # A proxy refuses a poll with 413, too, whatever has become of the job.
            too_large = answer.status == 413 and standing.location is None
            return standing.sends == 1 and (too_large or answer.type == "invalidMessage")
        case "collection":
            return answer.type in FINAL_COLLECTION_REFUSALS
        case _:
            assert_never(standing.kind)


def _send_much_later(
    standing: Standing,
    reason: str,
    moment: Moment,
    *,
    told: float | None = None,
    sends: int | None = None,
) -> Later:
    attempts = standing.attempts + 1
    run_at = (
        moment.backoff(attempts + _LONG) if told is None else moment.as_told(told, moment.retry_min)
    )
    sends = standing.sends if sends is None else sends
    return Later(None, run_at, attempts, sends, reason, alarm=True)


def _try_again(standing: Standing, answer: Unknown, moment: Moment) -> Later:
    attempts = standing.attempts + (0 if answer.busy else 1)
    if answer.retry_after is None:
        run_at = moment.backoff(max(attempts, 1))
    else:
        run_at = moment.as_told(answer.retry_after, moment.retry_min)
    location = standing.location if answer.transient else None
    return Later(location, run_at, attempts, standing.sends, answer.reason)
