"""Work that belongs to the daemon, wake-ups, and held requests."""

from __future__ import annotations

import pytest
import trio
import trio.testing

from dapd.errors import Abort
from dapd.runtime.wake import Finished, Wake
from dapd.runtime.work import Work


async def test_a2_work_goes_on_when_its_waiter_is_cancelled(nursery: trio.Nursery) -> None:
    """A client that hangs up doesn't waste the work."""
    work = Work(nursery, limit=4)
    go, done = trio.Event(), trio.Event()

    async def step() -> str:
        await go.wait()
        done.set()
        return "committed"

    running = work.start("job", step)
    with trio.CancelScope() as waiter:
        waiter.cancel()
        await running.wait()
    go.set()
    await done.wait()
    assert await running.wait() == "committed"


async def test_a2_an_identical_request_joins_the_running_work(nursery: trio.Nursery) -> None:
    """The work runs once, and all that wait for it get the same result."""
    work = Work(nursery, limit=4)
    starts = 0
    go = trio.Event()

    async def step() -> int:
        nonlocal starts
        starts += 1
        await go.wait()
        return starts

    first, second = work.start("job", step), work.start("job", step)
    go.set()
    assert await first.wait() == await second.wait() == 1


async def test_a2_a_failure_reaches_every_waiter_and_not_the_nursery(nursery: trio.Nursery) -> None:
    """An exception is a result, too."""
    work = Work(nursery, limit=4)

    async def step() -> None:
        raise LookupError("gone")

    running = work.start("job", step)
    for _ in range(2):
        with pytest.raises(LookupError):
            await running.wait()


async def test_a2_the_limit_holds_for_new_work_alone(nursery: trio.Nursery) -> None:
    """A request that joins running work is never refused for want of room."""
    work = Work(nursery, limit=1)
    go = trio.Event()
    work.start("known", go.wait)
    with pytest.raises(Abort) as refused:
        work.start("new", go.wait)
    assert refused.value.status == 503
    assert "Retry-After" in refused.value.headers
    work.start("known", go.wait)
    go.set()
    await trio.testing.wait_all_tasks_blocked()
    work.start("new", go.wait)


async def test_a_ring_before_the_wait_is_not_lost(autojump_clock: trio.abc.Clock) -> None:
    """A loop that was busy at that time runs again at once."""
    bell = Wake()
    bell.ring()
    start = trio.current_time()
    await bell.wait(60)
    assert trio.current_time() == start
    await bell.wait(60)
    assert trio.current_time() == start + 60


async def test_i8_draining_lets_every_held_request_go() -> None:
    """A daemon that stops answers them "not ready"."""
    finished = Finished()
    held = finished.listen(("aggregation", b"x"))
    finished.announce_all()
    assert held.is_set()
