"""A running pair whose clocks go wrong (rule D6): nothing is lost, nothing stops, nothing expires
by a time that is not.
"""

from __future__ import annotations

import email.utils
from pathlib import Path
from typing import Any

import structlog.testing
import trio

from dapd.admin.clock import ACCEPT, SHOW, ClockView
from dapd.admin.operation import Nothing
from dapd.cli.daemon import ask
from dapd.datastore import Datastore
from dapd.gc.loop import GarbageCollector
from dapd.keys import rotation
from dapd.protocol.task import TaskSettings
from dapd.testing.pair import Aggregator
from dapd.upkeep import clock_watch
from tests import raw_http
from tests.clock import TIME
from tests.pair_harness import TaskHarness, open_pair, query_at, running_clock, until

MINUTE = 60
HOUR = 60 * MINUTE
DAY = 24 * HOUR
YEAR = 365 * DAY
EXPIRING = TaskSettings(report_expiry_age=7 * DAY)


async def minutely(side: Aggregator) -> list[dict[str, Any]]:
    """What the daemon does once a minute: watch the clock, rotate keys, collect garbage.

    Returns the alarms of the clock.
    """
    with structlog.testing.capture_logs() as logs:
        await clock_watch.look(side.context)
        assert await rotation.rotate(side.context) == []
        assert await GarbageCollector(side.context).collect() == {}
    return [dict(line) for line in logs if line["event"] == "clock_held"]


async def expired_before(side: Aggregator, harness: TaskHarness) -> int:
    """Where this side's reports of the task begin."""
    task = await side.context.tasks.find(harness.task.task_id)
    assert task is not None
    return task.expired_before_at(side.context.instant())


def never(_: Datastore) -> ClockView:
    """What a command does without a daemon."""
    raise AssertionError("a daemon runs")


async def test_d6_ten_years_ahead_for_a_minute_expires_nothing(tmp_path: Path) -> None:
    """Reports, keys and jobs are as before, right reports are accepted, and somebody is told."""
    clock = running_clock()
    async with open_pair(tmp_path, clock=clock) as (pair, http):
        harness = TaskHarness(
            await pair.new_task("sum:max_measurement=100", settings=EXPIRING), http
        )
        assert await harness.upload(harness.seal([1, 2], "before")) == []
        sides = (pair.leader, pair.helper)
        marks = [await expired_before(side, harness) for side in sides]
        keys = [side.context.keyrings.published for side in sides]

        clock.jump(10 * YEAR)
        for side in sides:
            (alarm,) = await minutely(side)
            assert alarm["log_level"] == "error"
            assert "ahead by 3650 days" in alarm["reason"]
            assert "dapd clock accept" in alarm["remedy"]
        assert await harness.upload(harness.seal([3, 4], "meanwhile")) == []
        await harness.until_counted(pair.leader, "aggregate_finished", 4)
        clock.advance(MINUTE)
        for side in sides:
            assert await minutely(side) == []  # it is not repeated each minute
        assert [await expired_before(side, harness) for side in sides] == marks
        assert [side.context.keyrings.published for side in sides] == keys

        clock.jump(-10 * YEAR)
        assert pair.helper.context.safe_clock.look().held is None
        assert await harness.upload(harness.seal([5], "after")) == []
        await harness.until_counted(pair.leader, "aggregate_finished", 5)
        assert pair.leader.context.safe_clock.look().held is None
        result = await harness.task.collect(query_at())
        assert (result.value, result.report_count) == (15, 5)


async def test_d6_a_restart_while_the_clock_is_wrong_expires_nothing(tmp_path: Path) -> None:
    """A day ahead would pass for a stop, if the daemon before had not seen it jump."""
    clock = running_clock()
    async with open_pair(tmp_path, clock=clock) as (pair, _):
        clock.jump(DAY)
        held = pair.leader.context.safe_clock.look()
        await pair.leader.stop()
        await pair.leader.start()
        state = pair.leader.context.safe_clock.look()
        assert (state.safe, state.held is None) == (held.safe, False)


async def test_d6_e2_an_hour_back_loses_nothing_and_delays_no_job(tmp_path: Path) -> None:
    """What waited before the clock was set back is due after it; the safe time never falls."""
    clock = running_clock()
    async with open_pair(tmp_path, clock=clock) as (pair, http):
        harness = TaskHarness(
            await pair.new_task("sum:max_measurement=100", settings=EXPIRING), http
        )
        await pair.helper.stop()
        assert await harness.upload(harness.seal([1, 2], "before")) == []

        async def waits() -> bool:
            rows = await pair.leader.context.read(
                lambda tx: tx.all(
                    "SELECT 1 FROM aggregation_jobs WHERE state = 'stored'"
                    " AND lease_token IS NULL AND run_at > :now",
                    now=clock.now(),
                )
            )
            return bool(rows)

        await until(waits)
        before = pair.leader.context.safe_clock.now()
        clock.jump(-HOUR)
        await pair.helper.start()
        await harness.until_counted(pair.leader, "aggregate_finished", 2)
        assert await harness.upload(harness.seal([4], "after")) == []
        await harness.until_counted(pair.leader, "aggregate_finished", 3)
        assert (await harness.task.collect(query_at())).value == 7
        state = pair.leader.context.safe_clock.look()
        assert state.safe >= before
        assert state.held is not None
        assert (await minutely(pair.leader))[0]["reason"] == state.held
        clock.advance(HOUR)
        assert pair.leader.context.safe_clock.look().held is None
        assert pair.leader.context.safe_clock.now() >= before


async def test_d6_a_stop_of_a_month_expires_nothing_until_accepted(tmp_path: Path) -> None:
    """Both daemons were off for a month: whoever looks after them says that it was a month."""
    clock = running_clock()
    async with open_pair(tmp_path, clock=clock) as (pair, http):
        harness = TaskHarness(
            await pair.new_task("sum:max_measurement=100", settings=EXPIRING), http
        )
        assert await harness.upload(harness.seal([1, 2], "before")) == []
        await harness.until_counted(pair.leader, "aggregate_finished", 2)
        sides = (pair.leader, pair.helper)
        marks = [await expired_before(side, harness) for side in sides]
        for side in sides:
            await side.stop()
        clock.advance(30 * DAY)
        for side in sides:
            await side.start()
            shown = await trio.to_thread.run_sync(ask, side.context.config, SHOW, Nothing(), never)
            assert shown.held is not None
            assert (shown.now - shown.safe).days == 30
        assert [await expired_before(side, harness) for side in sides] == marks
        assert (await harness.task.collect(query_at())).value == 3

        for side in sides:
            config = side.context.config
            accepted = await trio.to_thread.run_sync(ask, config, ACCEPT, Nothing(), never)
            assert (accepted.held, accepted.safe) == (None, accepted.now)
            assert await expired_before(side, harness) >= TIME + 22 * 24
            await side.stop()
            await side.start()
            assert side.context.safe_clock.look().held is None


async def test_d6_a_peer_more_than_five_minutes_off_holds_the_leader(tmp_path: Path) -> None:
    """Its answers say what time it is there; once it agrees the Leader goes on."""
    theirs = running_clock()
    async with open_pair(tmp_path) as (pair, http):
        pair.helper.clock = theirs
        await pair.helper.stop()
        await pair.helper.start()
        harness = TaskHarness(
            await pair.new_task("sum:max_measurement=100", settings=EXPIRING), http
        )

        async def aggregate(label: str, total: int) -> None:
            assert await harness.upload(harness.seal([1, 1], label)) == []
            await harness.until_counted(pair.leader, "aggregate_finished", total)

        await aggregate("they agree", 2)
        clock = pair.leader.context.safe_clock
        assert clock.look().held is None
        theirs.jump(10 * MINUTE)
        await aggregate("the Helper is ahead", 4)
        state = clock.look()
        assert state.held is not None
        assert "behind those of the peers" in state.held
        assert list(state.offsets) == [pair.helper.url.rstrip("/")]
        assert 9 * MINUTE < state.offsets[pair.helper.url.rstrip("/")] / 1000 < 11 * MINUTE
        assert pair.helper.context.safe_clock.look().held is not None  # a jump, to itself
        theirs.jump(-10 * MINUTE)
        await aggregate("they agree again", 6)
        assert clock.look().held is None


async def test_answers_are_dated_by_the_daemons_own_clock(tmp_path: Path) -> None:
    """Or peers would compare their clocks with one that decides nothing."""
    clock = running_clock()
    async with open_pair(tmp_path, clock=clock) as (pair, _):
        for target in ("/hpke_config", "/nothing"):
            reply = await raw_http.ask(pair.leader.port, "GET", target)
            dated = email.utils.parsedate_to_datetime(reply.headers["date"]).timestamp()
            assert abs(dated - clock.now() / 1000) < MINUTE
