"""Make a process deterministic: install this before anything of dapd is imported.

Time is Trio's, which jumps to the next deadline once every task waits. Threads are replaced by
``run_inline``, with a pause before and after, so that other tasks run in between as they do beside
real threads. Randomness comes from the seed, but for HPKE's and the sealing's, which is Rust's.
"""

from __future__ import annotations

import gc
import itertools
import os
import random
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from heapq import heappush
from typing import Any, TypeVar

import trio
import trio.lowlevel
import trio.testing
from trio._core import _run

T = TypeVar("T")
HASH_SEED = "PYTHONHASHSEED"


class Killed(BaseException):
    """Ends the tasks of a process that was killed; no handler of the program catches it."""


class Process:
    """A simulated process. The tasks that it starts inherit ``current``."""

    dead = False

    def check_alive(self) -> None:
        """Raise ``Killed`` if this process was killed: it can do nothing any more."""
        if self.dead:
            raise Killed


current: ContextVar[Process | None] = ContextVar("current", default=None)

_chance = random.Random()
_real_random = random.Random


def fix_hash_seed() -> None:
    """Start this program anew unless the environment says how Python hashes."""
    if os.environ.get(HASH_SEED, "random") == "random":
        os.environ[HASH_SEED] = "0"
        os.execv(sys.executable, sys.orig_argv)  # noqa: S606 - the same program again


def install() -> None:
    """Replace this process's time, randomness, threads and scheduling, for good."""
    random._urandom = _random_bytes  # type: ignore[attr-defined]
    os.urandom = _random_bytes
    random.Random = _SeededRandom  # type: ignore[misc]
    for name in ("time", "monotonic", "perf_counter"):
        setattr(time, name, _now)
    trio.to_thread.run_sync = run_inline  # type: ignore[assignment]
    _run._ALLOW_DETERMINISTIC_SCHEDULING = True  # type: ignore[misc]
    _run.Deadlines.add = _add_deadline  # type: ignore[method-assign, assignment]


def slow_down_fallbacks() -> None:
    """Let loops that usually wait for an event poll more seldom: a run has fewer idle rounds."""
    from dapd.commits import create_jobs
    from dapd.driver import creator, dispatcher
    from dapd.upkeep import refresh

    creator._FALLBACK_POLL = dispatcher._FALLBACK_POLL = 20.0
    refresh._EVERY = 10.0
    create_jobs._MOST_CHUNKS = 8  # as many wait behind a cut sooner than 20,000


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Everything inside depends on ``seed`` alone; no object's memory address decides anything."""
    _chance.seed(seed)
    _run._r.seed(seed)
    random.seed(seed)
    gc.collect()
    gc.disable()  # it would end forgotten generators at moments that no seed decides
    try:
        yield
    finally:
        gc.enable()


async def run_inline(
    fn: Callable[..., T],
    *args: Any,
    thread_name: str | None = None,
    abandon_on_cancel: bool = False,
    limiter: trio.CapacityLimiter | None = None,
) -> T:
    """Do what ``trio.to_thread.run_sync`` does, in this thread, at a moment that chance decides."""
    process = current.get()
    await trio.lowlevel.checkpoint_if_cancelled()
    if limiter is None:
        limiter = _NO_LIMIT
    async with limiter:
        with trio.CancelScope(shield=True):
            await _pause()
            if process is not None:
                process.check_alive()
            try:
                result = fn(*args)
            finally:
                await _pause()
                if process is not None:
                    process.check_alive()
    return result


class _NoLimit:
    async def __aenter__(self) -> None: ...
    async def __aexit__(self, *_: object) -> None: ...


_NO_LIMIT: Any = _NoLimit()


async def _pause() -> None:
    """Let others run: mostly those that can, sometimes for so long that timers expire."""
    draw = _chance.random()
    if draw < 0.6:
        await trio.lowlevel.checkpoint()
    else:
        await trio.sleep(_chance.random() * (3 if draw > 0.98 else 0.001))


def jumping_clock() -> trio.testing.MockClock:
    """Return a clock that stands still, but jumps to the next deadline once every task waits."""
    clock = trio.testing.MockClock(autojump_threshold=0)
    clock._real_clock = lambda: 0.0
    return clock


def _random_bytes(size: int) -> bytes:
    return _chance.randbytes(size)


class _SeededRandom(_real_random):
    """Takes its seed from the simulation's unless it is given one."""

    def __init__(self, x: Any = None) -> None:
        super().__init__(_chance.getrandbits(64) if x is None else x)


def _now() -> float:
    """Trio's time; outside of a run the time stands still."""
    try:
        return trio.current_time()
    except RuntimeError:
        return 0.0


_ties = itertools.count()


def _add_deadline(
    deadlines: _run.Deadlines, deadline: float, cancel_scope: trio.CancelScope
) -> None:
    """Break ties by age, where Trio takes the memory address."""
    heappush(deadlines._heap, (deadline, next(_ties), cancel_scope))
    deadlines._active += 1
