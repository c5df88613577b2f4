"""The safe clock (rule D6): when it follows, when it is held; and back-off by elapsed time (E1)."""

from __future__ import annotations

import email.utils

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st

from dapd.datastore.safe_clock import StoredClock
from dapd.http import DapHttp, Refused
from dapd.messages.common import MediaType
from dapd.runtime.clock import AGREEMENT_MS, SafeClock
from dapd.runtime.peers import Peer, Peers
from tests.clock import NOW, ManualClock
from tests.raw_http import Request, answer
from tests.scripted_server import ScriptedServer as ScriptedPeer

SECOND = 1000
HOUR = 3600 * SECOND
DAY = 24 * HOUR
YEAR = 365 * DAY
WEEK = 7 * DAY
PEER = "https://helper.example"

_JUMPS = st.one_of(
    st.integers(-AGREEMENT_MS, AGREEMENT_MS),
    st.integers(-10 * YEAR, 10 * YEAR),
    st.just(0),
)
_MOVES = st.lists(st.tuples(st.integers(0, 30 * DAY), _JUMPS), max_size=30)


def started(stored: StoredClock | None = None) -> tuple[ManualClock, SafeClock]:
    clock = ManualClock()
    return clock, SafeClock(clock, stored, WEEK)


@given(_MOVES)
def test_d6_it_never_falls_and_never_rises_faster_than_time_elapses(
    moves: list[tuple[int, int]],
) -> None:
    """Both bounds hold whatever is done to the machine's clock."""
    clock, safe = started()
    begun, before = clock.now(), clock.now()
    for passed, jump in moves:
        clock.advance(passed / SECOND)
        clock.jump(jump / SECOND)
        state = safe.look()
        assert before <= state.safe <= begun + clock.elapsed()
        assert state.stored.safe == state.safe == safe.now()
        before = state.safe


@given(_MOVES)
def test_d6_a_clock_that_comes_right_again_is_followed_again(
    moves: list[tuple[int, int]],
) -> None:
    """No operator need confirm it, however long and however far it was wrong."""
    clock, safe = started()
    wrong = 0
    for passed, jump in moves:
        clock.advance(passed / SECOND)
        clock.jump((jump - wrong) / SECOND)
        wrong = jump
        safe.look()
    # More than what small steps, which are no jump, may have added up to.
    clock.advance(DAY / SECOND)
    clock.jump(-wrong / SECOND)
    assert (safe.look().held, safe.now()) == (None, clock.now())


@given(_MOVES, st.integers(-10 * YEAR, 10 * YEAR))
def test_d6_after_accept_it_is_the_machines_clock(moves: list[tuple[int, int]], jump: int) -> None:
    """An operator's confirmation ends every hold."""
    clock, safe = started(StoredClock(NOW - 30 * DAY))
    safe.ask_peer()(PEER, clock.now() + HOUR)
    for passed, step in [*moves, (0, jump)]:
        clock.advance(passed / SECOND)
        clock.jump(step / SECOND)
        safe.look()
    safe.accept()
    state = safe.look()
    assert (state.held, state.safe, state.stored) == (None, clock.now(), StoredClock(clock.now()))


def test_d6_a_minute_in_2036_holds_it() -> None:
    """After a jump of ten years and back, the safe clock lacks only the minute between them."""
    clock, safe = started()
    clock.advance(60)
    right = safe.now()
    assert right == clock.now()
    clock.jump(10 * YEAR / SECOND)
    clock.advance(60)
    state = safe.look()
    assert state.safe == right
    assert state.held == "the clock went ahead by 3650 days"
    clock.jump(-10 * YEAR / SECOND)
    assert (safe.look().held, safe.now()) == (None, clock.now())


def test_d6_an_hour_back_holds_it_for_an_hour() -> None:
    """It neither rises nor falls until the machine's clock is where it was."""
    clock, safe = started()
    at = safe.now()
    clock.jump(-HOUR / SECOND)
    state = safe.look()
    assert state.safe == at
    assert state.held == "the clock is 1 hour behind the time it showed before"
    assert not state.stored.doubted
    clock.advance(3600)
    assert (safe.look().held, safe.now()) == (None, at)


def test_d6_small_steps_hold_nothing_not_even_in_years() -> None:
    """NTP steps half a second an hour ahead for ten years: the safe clock lags by these steps
    alone.
    """
    clock, safe = started()
    for _ in range(10 * 365 * 24):
        clock.advance(3600)
        clock.jump(0.5)
        assert safe.look().held is None
    assert clock.now() - safe.now() == 10 * 365 * 24 * 500


def test_d6_many_steps_within_a_day_are_a_jump() -> None:
    """Ten steps of half a minute are as much as one of five minutes."""
    clock, safe = started()
    held = []
    for _ in range(12):
        clock.advance(60)
        clock.jump(30)
        held.append(safe.look().held is not None)
    assert held == [False] * 10 + [True] * 2


def test_d6_a_short_stop_is_followed() -> None:
    """No clock measures how long the daemon was stopped; up to a limit it follows the machine's."""
    for stop in (0, HOUR, WEEK):
        clock, safe = started(StoredClock(NOW - stop))
        state = safe.look()
        assert (state.held, state.safe) == (None, clock.now())
    clock.jump(HOUR / SECOND)
    assert safe.look().held is not None


def test_d6_a_stop_of_a_month_waits_for_an_operator() -> None:
    """Another restart doesn't end the hold; ``accept`` does."""
    stored = StoredClock(NOW - 30 * DAY)
    for _ in range(2):
        clock, safe = started(stored)
        clock.advance(3600)
        state = safe.look()
        assert state.safe == NOW - 30 * DAY
        assert state.held is not None
        assert state.stored.doubted
        stored = state.stored
    safe.accept()
    assert (safe.look().held, safe.now()) == (None, clock.now())
    clock.advance(60)
    assert safe.now() == clock.now()


@pytest.mark.parametrize("wrong", [-40 * YEAR, 10 * YEAR])
def test_d6_a_machine_that_learns_the_time_after_its_start_needs_nobody(wrong: int) -> None:
    """A machine without a battery for its clock gets the time a minute after the daemon starts."""
    clock = ManualClock()
    right = clock.now()
    clock.jump(wrong / SECOND)
    safe = SafeClock(clock, StoredClock(right - HOUR), WEEK)
    assert safe.look().held is not None
    clock.advance(60)
    assert safe.now() == right - HOUR
    clock.jump(-wrong / SECOND)
    assert (safe.look().held, safe.now()) == (None, clock.now())


def test_d6_a_restart_alone_ends_no_hold() -> None:
    """A day ahead is less than a long stop, but the daemon before had seen the clock jump."""
    clock, safe = started()
    at = safe.now()
    clock.jump(DAY / SECOND)
    stored = safe.look().stored
    again = SafeClock(clock, stored, WEEK)
    assert again.look().held == "the clock was in doubt when the daemon stopped"
    assert again.now() == at
    clock.jump(-DAY / SECOND)
    clock.advance(60)
    assert (again.look().held, again.now()) == (None, clock.now())


def test_d6_a_peer_that_differs_holds_it_until_it_agrees() -> None:
    """dapd can't know which of both is wrong, so nothing expires meanwhile."""
    clock, safe = started()
    at = safe.now()
    safe.ask_peer()(PEER, clock.now() - 4 * 60 * SECOND)
    assert safe.look().held is None
    safe.ask_peer()(PEER, clock.now() + 2 * HOUR)
    clock.advance(60)
    state = safe.look()
    assert state.held == "the clock is 2 hours behind those of the peers"
    assert (state.safe, state.offsets) == (at, {PEER: 2 * HOUR})
    safe.ask_peer()(PEER, clock.now() + 20 * SECOND)
    assert (safe.look().held, safe.now()) == (None, clock.now())


def test_d6_setting_this_machine_right_needs_no_new_answer() -> None:
    """The peer's last answer and the elapsed time still tell the peer's time."""
    clock, safe = started()
    safe.ask_peer()(PEER, clock.now() - 20 * 60 * SECOND)
    clock.advance(3600)
    assert safe.look().held == "the clock is 20 minutes ahead of those of the peers"
    clock.jump(-20 * 60)
    assert safe.look().held is None


async def test_d6_an_answer_from_before_a_suspension_holds_nothing(nursery: trio.Nursery) -> None:
    """The peer has answered, this machine sleeps, and reads the answer when it wakes."""
    clock, safe = started()

    def sleep(_: Request) -> bytes:
        date = email.utils.formatdate(clock.now() / 1000, usegmt=True)
        clock.advance(3 * 3600)
        return answer(404, Date=date)

    url = await ScriptedPeer(sleep).serve(nursery)
    async with DapHttp(on_request=safe.ask_peer) as http:
        outcome = await http.get(f"{url}/hpke_config", MediaType.HPKE_CONFIG_LIST)
    assert isinstance(outcome, Refused)
    state = safe.look()
    assert (state.held, state.safe, state.offsets) == (None, clock.now(), {})


def test_d6_a_slow_answer_leaves_what_a_prompt_one_said() -> None:
    """It neither holds the clock nor ends a hold."""
    clock, safe = started()
    slow = safe.ask_peer()
    clock.advance(3600)
    safe.ask_peer()(PEER, clock.now() + HOUR)
    slow(PEER, clock.now())
    state = safe.look()
    assert state.held == "the clock is 1 hour behind those of the peers"
    assert state.offsets == {PEER: HOUR}


def test_d6_one_of_several_peers_does_not_hold_it() -> None:
    """Only a majority of the peers holds it: half of them is not enough."""
    clock, safe = started()
    safe.ask_peer()("https://a.example", clock.now())
    safe.ask_peer()("https://b.example", clock.now() + HOUR)
    assert safe.look().held is None
    safe.ask_peer()("https://c.example", clock.now() - HOUR)
    assert safe.look().held is not None


def test_d6_an_accepted_difference_holds_nothing_until_the_peer_agreed_once() -> None:
    """A peer that stays wrong must not raise the alarm for ever."""
    clock, safe = started()
    for _ in range(3):
        safe.ask_peer()(PEER, clock.now() + HOUR)
        if safe.look().held:
            safe.accept()
        clock.advance(60)
    assert (safe.look().held, safe.now()) == (None, clock.now())
    assert safe.look().offsets == {PEER: HOUR}
    safe.ask_peer()(PEER, clock.now())
    safe.ask_peer()(PEER, clock.now() + HOUR)
    assert safe.look().held is not None


def test_e1_setting_the_clock_back_prolongs_no_peers_pause() -> None:
    """Back-off goes by elapsed time, whatever the clock shows."""
    clock = ManualClock()
    peers = Peers(8, clock, lambda: 0.0)
    peer: Peer = peers.at(PEER)
    peer.unreachable(60, 600)
    due = peers.next_unblocked(clock.now())
    assert due is not None
    wait = due - clock.now()
    assert 0 < wait <= 60 * SECOND
    clock.jump(-HOUR / SECOND)
    assert (peer.free, peers.next_unblocked(clock.now())) == (0, clock.now() + wait)
    clock.advance(wait / 1000)
    assert (peer.free, peers.next_unblocked(clock.now())) == (1, None)
    clock.jump(YEAR / SECOND)
    peer.unreachable(60, 600)
    assert peer.free == 0
