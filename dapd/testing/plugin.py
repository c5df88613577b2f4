"""The pytest fixture ``dap_pair``: a Leader and a Helper in a thread, for tests without Trio."""

from __future__ import annotations

import queue
import threading
from collections.abc import Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import pytest
import trio

if TYPE_CHECKING:  # pytest imports this module in every run
    from dapd.client import Uploaded
    from dapd.collector import Query, Result
    from dapd.testing.pair import Pair, PairTask
    from dapd.vdaf import Measurement

T = TypeVar("T")


class BlockingPair:
    """``Pair`` for tests without Trio: every call blocks until it is done."""

    def __init__(self, pair: Pair, token: trio.lowlevel.TrioToken) -> None:
        self._pair = pair
        self._token = token

    @property
    def leader_url(self) -> str:
        """The Leader's base URL."""
        return self._pair.leader.url

    @property
    def helper_url(self) -> str:
        """The Helper's base URL."""
        return self._pair.helper.url

    def new_task(self, vdaf: str = "count", **options: Any) -> BlockingTask:
        """Make a task and add it to both; see ``Pair.new_task``."""
        return BlockingTask(self, self.call(partial(self._pair.new_task, vdaf, **options)))

    def call(self, function: Callable[[], Awaitable[T]]) -> T:
        """Run an async function in the pair's thread and wait for its result."""
        return trio.from_thread.run(function, trio_token=self._token)


@dataclass(frozen=True)
class BlockingTask:
    """``PairTask`` for tests without Trio."""

    pair: BlockingPair
    task: PairTask

    def upload(self, measurements: Sequence[Measurement], *, time: float | None = None) -> Uploaded:
        """Upload measurements; see ``PairTask.upload``."""
        return self.pair.call(lambda: self.task.upload(measurements, time=time))

    def collect(self, query: Query | None = None) -> Result:
        """Collect a batch; see ``PairTask.collect``."""
        return self.pair.call(lambda: self.task.collect(query))

    def write_files(self, directory: Path) -> list[Path]:
        """Write the four task files; see ``PairTask.write_files``."""
        return self.task.write_files(directory)


@pytest.fixture
def dap_pair(tmp_path: Path) -> Iterator[BlockingPair]:
    """Run a real Leader and a real Helper for the duration of one test."""
    from dapd.testing.pair import running_pair

    started: queue.SimpleQueue[BlockingPair | BaseException] = queue.SimpleQueue()
    stop = trio.Event()

    async def run() -> None:
        async with running_pair(tmp_path / "dap-pair") as pair:
            token = trio.lowlevel.current_trio_token()
            started.put(BlockingPair(pair, token))
            await stop.wait()

    def thread() -> None:
        try:
            trio.run(run)
        except BaseException as error:  # noqa: BLE001 - raised again in the test's thread
            started.put(error)

    worker = threading.Thread(target=thread, name="dap-pair")
    worker.start()
    first = started.get()
    if isinstance(first, BaseException):
        worker.join()
        raise first
    yield first
    first._token.run_sync_soon(stop.set)
    worker.join()
