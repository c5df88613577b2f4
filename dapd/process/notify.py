"""Notify the service manager of the daemon's state: ready, status, more time, watchdog, stopping.

This is systemd's notification protocol (sd_notify(3)): datagrams to the socket in
``NOTIFY_SOCKET``. Without that variable nothing is sent. The unit is ``packaging/dapd.service``.
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
_MESSAGES_PER_WATCHDOG = 3
"""Watchdog messages per watchdog period, after which systemd would kill the daemon."""


class Notifier:
    """Sends messages to the service manager; never fails, because there may be none."""

    def __init__(self, environment: Mapping[str, str] = os.environ) -> None:
        self._address = environment.get("NOTIFY_SOCKET", "")
        if self._address.startswith("@"):
            self._address = "\0" + self._address[1:]
        self._watchdog = _watchdog_seconds(environment)

    def ready(self, status: str) -> None:
        """Notify that the daemon is ready."""
        self._send("READY=1", f"STATUS={status}")

    def status(self, status: str) -> None:
        """Set the status line of ``systemctl status``."""
        self._send(f"STATUS={status}")

    def stopping(self, status: str, seconds: float) -> None:
        """Notify that the daemon is stopping, and will take up to ``seconds``."""
        self._send("STOPPING=1", f"STATUS={status}", _extension(seconds))

    @contextmanager
    def extending_timeout(self, status: str) -> Iterator[None]:
        """Keep asking for more time while the block runs, even if it blocks this thread."""
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
    async def feeding_watchdog(self) -> AsyncIterator[None]:
        """Send watchdog messages while the block runs."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self.feed_watchdog)
            yield
            nursery.cancel_scope.cancel()

    async def feed_watchdog(self) -> None:
        """Send a watchdog message regularly; it stops if the event loop does."""
        if self._watchdog is None:
            return
        while True:
            self._send("WATCHDOG=1")
            await trio.sleep(self._watchdog / _MESSAGES_PER_WATCHDOG)

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
    """Update the line of ``systemctl status`` once a minute, until the daemon drains."""
    notifier = Notifier()
    while True:
        with trio.move_on_after(_STATUS_EVERY):
            await context.draining.wait()
            return
        line = await status_line(context)
        if not context.draining.is_set():
            notifier.status(line)


async def status_line(context: Context) -> str:
    """Return a line with the number of served tasks, unfinished jobs and waiting reports."""
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
    """Return the watchdog period; ``None`` if systemd doesn't watch this process."""
    period = environment.get("WATCHDOG_USEC", "")
    watched = environment.get("WATCHDOG_PID", str(os.getpid()))
    if not period.isdecimal() or watched != str(os.getpid()):
        return None
    return int(period) / 1_000_000
