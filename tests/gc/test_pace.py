"""The garbage collector's steps: so short that they hardly delay uploads."""

from __future__ import annotations

from pathlib import Path

import trio

from dapd.datastore import Tx
from dapd.datastore.expiry import Found
from dapd.gc.pace import STEP_BYTES, STEP_SECONDS, Pace
from tests.contexts import make_config, open_context


async def test_steps_that_hold_the_writer_too_long_get_smaller(tmp_path: Path) -> None:
    """They shrink to one row at least; quick steps grow, within limits."""
    async with open_context(make_config(tmp_path)) as context:
        pace = Pace(context)
        first = pace.rows
        pace.learn(2 * STEP_SECONDS)
        assert pace.rows == first // 2
        for _ in range(20):
            pace.learn(2 * STEP_SECONDS)
        assert pace.rows == 1
        pace.learn(0.6 * STEP_SECONDS)
        assert pace.rows == 1
        pace.learn(0.0)
        assert pace.rows == 2
        for _ in range(20):
            pace.learn(0.0)
        assert pace.rows < 10_000


async def test_a_step_takes_so_many_rows_and_bytes_but_one_row_at_least(tmp_path: Path) -> None:
    """Large rows are deleted one by one."""
    async with open_context(make_config(tmp_path)) as context:
        pace = Pace(context)
        small = [Found(pk, 0, 10) for pk in range(100)]
        assert pace.cut(small) == pace.rows
        assert pace.cut(small[:3]) == 3
        large = [Found(pk, 0, STEP_BYTES) for pk in range(100)]
        assert pace.cut(large) == 1
        assert pace.cut([*small[:2], *large]) == 2
        assert pace.cut([]) == 0


async def test_draining_ends_a_pause_and_a_round(tmp_path: Path) -> None:
    """A stop doesn't wait for work that the next process can do."""
    async with open_context(make_config(tmp_path)) as context:
        times = iter([0.0, 3600.0])
        pace = Pace(context, timer=lambda: next(times))

        def step(tx: Tx) -> int:
            return len(tx.all("SELECT 1"))

        assert await pace.step(step) == 1
        context.drain()
        with trio.fail_after(60):
            await pace.pause()
