"""What the service manager is told: ready, how it goes, more time please, alive, stopping.

systemd's notification protocol (sd_notify(3)): datagrams to the socket that ``NOTIFY_SOCKET``
names. Without one, nothing happens. Left out: the unit (``packaging/dapd.service``).
"""

from __future__ import annotations

import os
import socket
import threading
from collections import Counter
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager

import trio

from dapd.datastore.backlog import whole_backlog
from dapd.errors import DatastoreError
from dapd.runtime.context import Context

_STATUS_EVERY = 60.0
_EXTENSION_SECONDS = 30
_WATCHDOG_BEATS = 3
"""Beats in the time after which the service manager gives the daemon up."""


class Notifier:
    """Says things to the service manager; never fails, because nobody may be listening."""

    def __init__(self, environment: Mapping[str, str] = os.environ) -> None:
        self._address = environment.get("NOTIFY_SOCKET", "")
        if self._address.startswith("@"):
            self._address = "\0" + self._address[1:]
        self._watchdog = _watchdog_seconds(environment)

    def ready(self, status: str) -> None:
        """The daemon serves."""
        self._send("READY=1", f"STATUS={status}")

    def status(self, status: str) -> None:
        """One line for ``systemctl status``."""
        self._send(f"STATUS={status}")

    def stopping(self, status: str, seconds: float) -> None:
        """The daemon ends, within so many seconds."""
        self._send("STOPPING=1", f"STATUS={status}", _extension(seconds))

    @contextmanager
    def taking_long(self, status: str) -> Iterator[None]:
        """Ask for more time as long as the block runs, also if it blocks this thread."""
        done = threading.Event()

        def ask() -> None:
            while True:
                self._send(f"STATUS={status}", _extension(_EXTENSION_SECONDS))
                if done.wait(_EXTENSION_SECONDS / 3):
                    return

        thread = threading.Thread(target=ask, name="dapd-notify", daemon=True)
        thread.start()
        try:
            yield
        finally:
            done.set()
            thread.join()

    @asynccontextmanager
    async def beating(self) -> AsyncIterator[None]:
        """The watchdog is fed while the block runs."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self.beat)
            yield
            nursery.cancel_scope.cancel()

    async def beat(self) -> None:
        """Show for as long as the event loop runs that it does."""
        if self._watchdog is None:
            return
        while True:
            self._send("WATCHDOG=1")
            await trio.sleep(self._watchdog / _WATCHDOG_BEATS)

    def _send(self, *lines: str) -> None:
        if not self._address:
            return
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sender:
            try:
                sender.connect(self._address)
                sender.send("\n".join(lines).encode())
            except OSError:
                return


async def run(context: Context) -> None:
    """Until draining: the line of ``systemctl status``, once a minute."""
    notifier = Notifier()
    while True:
        with trio.move_on_after(_STATUS_EVERY):
            await context.draining.wait()
            return
        line = await status_line(context)
        if not context.draining.is_set():
            notifier.status(line)


async def status_line(context: Context) -> str:
    """The tasks that are served, and what waits."""
    tasks = Counter(task.role.name.capitalize() for task in context.tasks.all())
    served = ", ".join(f"{tasks[role]} as {role}" for role in sorted(tasks)) or "none yet"
    try:
        found = await context.read(whole_backlog)
    except DatastoreError as error:
        return f"tasks: {served}; the database can't be read: {error}"
    jobs = sum(each.jobs for each in (*found.aggregation_jobs, *found.collection_jobs))
    reports = sum(each.n for each in found.waiting)
    return f"tasks: {served}; unfinished jobs: {jobs}; reports in no job yet: {reports}"


def _extension(seconds: float) -> str:
    return f"EXTEND_TIMEOUT_USEC={int(seconds * 1_000_000)}"


def _watchdog_seconds(environment: Mapping[str, str]) -> float | None:
    """How long the loop may be silent; ``None`` if nobody watches this process."""
    period = environment.get("WATCHDOG_USEC", "")
    watched = environment.get("WATCHDOG_PID", str(os.getpid()))
    if not period.isdecimal() or watched != str(os.getpid()):
        return None
    return int(period) / 1_000_000
