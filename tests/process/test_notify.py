"""What the service manager hears, over a real notify socket."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
import trio
import trio.testing

from dapd.process.notify import Notifier


class Manager:
    """The other end of ``NOTIFY_SOCKET``."""

    def __init__(self, address: str) -> None:
        self.address = address
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind(address.replace("@", "\0", 1))
        self._socket.settimeout(10)

    def heard(self) -> list[str]:
        """The lines of the next message."""
        return self._socket.recv(4096).decode().split("\n")

    def silent(self) -> bool:
        self._socket.setblocking(False)
        try:
            return not self._socket.recv(4096)
        except BlockingIOError:
            return True

    def close(self) -> None:
        self._socket.close()


@pytest.fixture(params=["{tmp}/notify", "@dapd-test-{pid}"])
def manager(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Manager]:
    made = Manager(str(request.param).format(tmp=tmp_path, pid=os.getpid()))
    yield made
    made.close()


def test_a_manager_hears_each_state(manager: Manager) -> None:
    """On a socket in the file system and on an abstract one."""
    notifier = Notifier({"NOTIFY_SOCKET": manager.address})
    notifier.ready("serving 2 tasks")
    assert manager.heard() == ["READY=1", "STATUS=serving 2 tasks"]
    notifier.stopping("finishing", 20)
    assert manager.heard() == ["STOPPING=1", "STATUS=finishing", "EXTEND_TIMEOUT_USEC=20000000"]


def test_long_work_asks_for_time_before_it_blocks(manager: Manager) -> None:
    """A migration must not be killed as a start that hangs."""
    notifier = Notifier({"NOTIFY_SOCKET": manager.address})
    with notifier.extending_timeout("migrating"):
        assert manager.heard() == ["STATUS=migrating", "EXTEND_TIMEOUT_USEC=30000000"]
    assert manager.silent()


async def test_the_watchdog_is_fed_by_the_event_loop(
    manager: Manager, autojump_clock: trio.testing.MockClock
) -> None:
    """Three times in the period; a loop that stands feeds nothing."""
    notifier = Notifier({"NOTIFY_SOCKET": manager.address, "WATCHDOG_USEC": "30000000"})
    with trio.move_on_after(25):
        await notifier.feed_watchdog()
    assert [manager.heard() for _ in range(3)] == [["WATCHDOG=1"]] * 3
    assert manager.silent()


async def test_another_process_watchdog_is_not_fed(manager: Manager) -> None:
    """A child that inherits the environment must not speak for its parent."""
    other = {"NOTIFY_SOCKET": manager.address, "WATCHDOG_USEC": "1000", "WATCHDOG_PID": "1"}
    await Notifier(other).feed_watchdog()
    assert manager.silent()


def test_nobody_listening_is_no_failure(tmp_path: Path) -> None:
    """Without a manager, and with one that has gone."""
    Notifier({}).ready("serving")
    Notifier({"NOTIFY_SOCKET": str(tmp_path / "gone")}).ready("serving")
