"""The rotation of HPKE keys: one key is active at all times, whatever happens."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from dapd.protocol.keys import (
    IDS,
    MANDATORY_SUITE,
    SUITES,
    KeyState,
    KeyTimes,
    Move,
    Next,
    StoredKey,
    first_active,
    free_ids,
    next_of,
    plan,
    promotion,
    replaced,
)

DAY = 86_400_000
TIMES = KeyTimes(pending=2 * DAY, active=84 * DAY, max_age=10 * DAY, report_life=10 * DAY)
P256 = SUITES["p256-aes128"]
PENDING, ACTIVE, EXPIRED, DELETED = KeyState
ORDER = list(KeyState)


def key(
    config_id: int, state: KeyState, day: float, suite: tuple[int, int, int] = P256
) -> StoredKey:
    return StoredKey(config_id, suite, state, int(day * DAY))


def after(stored: Sequence[StoredKey], moves: Sequence[Move], now: int) -> list[StoredKey]:
    """Apply the moves as a transaction does, checking that each starts from the key's state."""
    rows = {each.config_id: each for each in stored}
    for move in moves:
        known = rows.get(move.config_id)
        if move.was is DELETED:
            assert known is None or known.state is DELETED
        else:
            assert known is not None
            assert known.state is move.was
            assert ORDER.index(move.to) > ORDER.index(move.was)
        rows[move.config_id] = StoredKey(move.config_id, move.suite, move.to, now)
    return list(rows.values())


def test_f1_the_first_key_of_an_empty_database_is_active_at_once() -> None:
    """No backup contains the key yet, but no report is sealed to it either."""
    assert plan([], 0, TIMES) == [Move(0, MANDATORY_SUITE, DELETED, ACTIVE)]


def test_f1_a_key_is_made_promoted_and_deleted_at_its_times_and_not_before() -> None:
    """``pending`` overlaps the end of the predecessor's ``active``; ``kept`` starts after it."""
    old = key(0, ACTIVE, 0)
    assert plan([old], 82 * DAY - 1, TIMES) == []
    assert plan([old], 82 * DAY, TIMES) == [Move(1, P256, DELETED, PENDING)]
    new = key(1, PENDING, 82)
    assert plan([old, new], 84 * DAY - 1, TIMES) == []
    promoted = [Move(1, P256, PENDING, ACTIVE), Move(0, P256, ACTIVE, EXPIRED)]
    assert plan([old, new], 84 * DAY, TIMES) == promoted
    stored = after([old, new], promoted, 84 * DAY)
    assert plan(stored, 114 * DAY - 1, TIMES) == []
    assert plan(stored, 114 * DAY, TIMES) == [Move(0, P256, EXPIRED, DELETED)]


def test_f1_a_key_stays_while_any_task_keeps_its_reports_for_ever() -> None:
    """Then the last report sealed to the key may come at any time."""
    stored = [key(0, EXPIRED, 0), key(1, ACTIVE, 0)]
    moves = plan(stored, 10_000 * DAY, replace(TIMES, report_life=None))
    assert [move for move in moves if move.to is DELETED] == []


def test_f1_an_expired_key_is_kept_for_the_longest_max_age_of_its_publication() -> None:
    """Neither a shorter configured one nor a key of a shorter one ends that promise."""
    old = replace(key(0, EXPIRED, 0), cached_for=20 * DAY)
    short = replace(key(1, EXPIRED, 0), cached_for=5 * DAY)
    stored = [old, short, key(2, ACTIVE, 0)]
    assert plan(stored, 30 * DAY - 1, TIMES) == []
    assert plan(stored, 30 * DAY, TIMES) == [Move(1, P256, EXPIRED, DELETED)]
    assert next_of(old, stored, TIMES) == Next(DELETED, 50 * DAY)
    assert Move(0, P256, EXPIRED, DELETED) not in plan(stored, 50 * DAY - 1, TIMES)
    assert Move(0, P256, EXPIRED, DELETED) in plan(stored, 50 * DAY, TIMES)


def test_each_published_suite_has_a_succession_of_its_own() -> None:
    """A suite is no longer rotated once an operator has expired its last active key."""
    x25519 = MANDATORY_SUITE
    both = [key(0, ACTIVE, 0, x25519), key(1, ACTIVE, 0, P256)]
    made = plan(both, 83 * DAY, TIMES)
    assert {(move.suite, move.to) for move in made} == {(x25519, PENDING), (P256, PENDING)}
    assert len({move.config_id for move in made}) == 2
    retired = [key(0, ACTIVE, 0, x25519), key(1, EXPIRED, 80, P256)]
    assert [move.suite for move in plan(retired, 83 * DAY, TIMES)] == [x25519]


def test_f1_a_new_id_is_the_longest_unused_one() -> None:
    """Ids that no Client can have seen come first, then those deleted the longest time ago."""
    tombstones = [key(number, DELETED, 1000 - number) for number in range(IDS - 2)]
    stored = [*tombstones, key(255, ACTIVE, 0)]
    assert free_ids(stored)[:3] == [254, 253, 252]
    assert free_ids(stored)[-1] == 0


def test_a_time_in_the_future_is_due_but_deletes_nothing() -> None:
    """A clock that showed 2036 at the first boot must not stop the rotation until then."""
    wrong = key(0, ACTIVE, 3650)
    stored = after([wrong], plan([wrong], DAY, TIMES), DAY)
    stored = after(stored, plan(stored, 3 * DAY, TIMES), 3 * DAY)
    assert {each.config_id: each.state for each in stored} == {0: EXPIRED, 1: ACTIVE}
    assert plan([key(0, EXPIRED, 3650), key(1, ACTIVE, 0)], DAY, TIMES) == []


def test_without_an_id_left_the_active_key_stays_active() -> None:
    """Running out of ids must not leave the daemon without a published key."""
    stored = [key(0, ACTIVE, 0)] + [key(number, EXPIRED, 99) for number in range(1, IDS)]
    assert free_ids(stored) == []
    assert plan(stored, 100 * DAY, TIMES) == []


def test_next_of_says_what_plan_will_do() -> None:
    """``dapd key list`` shows these predictions."""
    old, new = key(0, ACTIVE, 0), key(1, PENDING, 82.5)
    assert next_of(old, [old], TIMES) == Next(EXPIRED, 84 * DAY)
    assert next_of(old, [old, new], TIMES) == Next(EXPIRED, int(84.5 * DAY))
    assert next_of(new, [old, new], TIMES) == Next(ACTIVE, int(84.5 * DAY))
    gone = key(2, EXPIRED, 10)
    assert next_of(gone, [gone], TIMES) == Next(DELETED, 40 * DAY)
    assert next_of(gone, [gone], replace(TIMES, report_life=None)) == Next(DELETED, None)


HOURS = st.integers(0, 40 * 24)
OPERATOR = st.sampled_from(["nothing", "add", "add active", "promote", "expire", "remove", "back"])


def interfere(
    stored: list[StoredKey], deed: str, number: int, now: int
) -> tuple[list[StoredKey], int]:
    """Do what an operator may do to the keys and to the clock."""
    suite = list(SUITES.values())[number % len(SUITES)]
    pending = [each for each in stored if each.state is PENDING]
    active = [each for each in stored if each.state is ACTIVE]
    ids = free_ids(stored)
    moves: list[Move] = []
    match deed:
        case "add" if ids:
            moves = [Move(ids[0], suite, DELETED, PENDING)]
        case "add active" if ids:
            moves = [Move(ids[0], suite, DELETED, ACTIVE), *replaced(suite, stored)]
        case "promote" if pending:
            moves = promotion(pending[number % len(pending)], stored)
        case "expire" if len(active) > 1:
            gone = active[number % len(active)]
            moves = [Move(gone.config_id, gone.suite, ACTIVE, EXPIRED)]
        case "remove" if pending:
            gone = pending[number % len(pending)]
            moves = [Move(gone.config_id, gone.suite, PENDING, DELETED)]
        case "back":
            return stored, max(0, now - number * DAY)
        case _:
            pass
    return after(stored, moves, now), now


@given(
    times=st.builds(
        KeyTimes,
        pending=st.integers(0, 9 * DAY),
        active=st.integers(10 * DAY, 100 * DAY),
        max_age=st.integers(0, 31 * DAY),
        report_life=st.integers(0, 140 * DAY) | st.none(),
    ),
    used=st.integers(0, IDS - 1),
    steps=st.lists(st.tuples(HOURS, OPERATOR, st.integers(0, 400)), max_size=60),
)
def test_f1_whatever_the_times_one_key_is_active_and_none_goes_too_early(
    times: KeyTimes, used: int, steps: list[tuple[int, str, int]]
) -> None:
    """For any sequence of times and commands: states only move forward (``after`` checks it), each
    plan leaves one active key per suite, a key is kept for its time, and ids are reused last.
    """
    stored = [key(number, DELETED, number % 7) for number in range(used)]
    now = 7 * DAY
    stored = after(stored, first_active(stored), now)
    for hours, deed, number in steps:
        stored, now = interfere(stored, deed, number, now + hours * DAY // 24)
        moves = plan(stored, now, times)
        before = {each.config_id: each for each in stored}
        for move in moves:
            if move.to is DELETED:
                assert move.was is EXPIRED
                assert times.report_life is not None
                kept = 2 * times.max_age + times.report_life
                assert now >= before[move.config_id].changed_at + kept
        made = [move.config_id for move in moves if move.was is DELETED]
        assert made == free_ids(stored)[: len(made)]
        stored = after(stored, moves, now)
        assert len(stored) <= IDS
        active = [each.suite for each in stored if each.state is ACTIVE]
        assert active
        assert len(active) == len(set(active))


@given(steps=st.lists(st.integers(1, 60), min_size=300, max_size=300))
def test_f1_years_of_looks_on_any_day_keep_few_keys(steps: list[int]) -> None:
    """A daemon that runs only now and then still replaces its keys, and doesn't pile them up."""
    stored: list[StoredKey] = []
    now = 0
    for days in steps:
        now += days * DAY
        stored = after(stored, plan(stored, now, TIMES), now)
        assert len([each for each in stored if each.state is not DELETED]) <= 4
