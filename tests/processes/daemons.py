"""Daemons as processes of their own: started, killed, started again; and what lies between them.

A ``Wire`` is the address that others know. It forwards to wherever the daemon listens now, so that
a restart needs no port of its own, and it sees every piece of bytes that passes.
"""

from __future__ import annotations

import json
import os
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import trio

from dapd.commits.tasks import add_task
from dapd.config import HelperMode
from dapd.config.keyfiles import read_sealing_keys
from dapd.config.loading import load
from dapd.crypto import make_sealer
from dapd.datastore import Tx, open_for_command
from dapd.datastore.check import Finding
from dapd.messages.common import b64url_encode
from dapd.protocol.task import TaskSettings
from dapd.taskfile import HelperTask, LeaderTask, aggregator_task
from tests import forks
from tests.database_dump import findings

SECONDS = 300
"""After these a test has failed. None takes that long, also where a job waits since more than one
process has died with it (E2)."""
AS_OPERATORS_DO = ("-m", "dapd")
QUICK = """
[log]
level = "debug"
format = "json"

[disk]
min_free_bytes = 0

[leader]
retry_min = 0.02
retry_max = 0.2
poll_max = 0.05
max_wait = 0.05
min_job_size = 5
max_job_size = 20
"""
"""Settings with which nobody waits longer than need be."""


async def nothing() -> None:
    """Nobody looks at what passes."""


@dataclass
class Wire:
    """``passing`` is awaited before and after each piece is forwarded, in either direction."""

    passing: Callable[[], Awaitable[None]] = nothing
    target: int | None = None
    port: int = 0

    async def serve(self, nursery: trio.Nursery) -> None:
        """Listen until the nursery ends."""
        listeners = await nursery.start(trio.serve_tcp, self._connection, 0)
        self.port = listeners[0].socket.getsockname()[1]

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/"

    async def _connection(self, near: trio.SocketStream) -> None:
        if self.target is None:
            return
        try:
            far = await trio.open_tcp_stream("127.0.0.1", self.target)
        except OSError:
            return
        async with far, trio.open_nursery() as nursery:
            nursery.start_soon(self._pump, near, far, nursery.cancel_scope)
            nursery.start_soon(self._pump, far, near, nursery.cancel_scope)

    async def _pump(
        self, source: trio.SocketStream, sink: trio.SocketStream, scope: trio.CancelScope
    ) -> None:
        try:
            async for piece in source:
                await self.passing()
                await sink.send_all(piece)
                await self.passing()
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            pass
        scope.cancel()


@dataclass
class DaemonProcess:
    """One Aggregator's files below ``directory``, and the process that serves them, if it lives."""

    directory: Path
    nursery: trio.Nursery
    wire: Wire
    lines: list[str] = field(default_factory=list)
    """What all its processes wrote, standard error included."""
    process: forks.Fork | None = None
    _said: trio.Event = field(default_factory=trio.Event)

    @property
    def config(self) -> Path:
        return self.directory / "dapd.toml"

    @property
    def database(self) -> Path:
        return self.directory / "state" / "dapd.sqlite"

    def make(self, settings: str = QUICK, server: str = "") -> None:
        """The files that ``dapd init`` makes, with ``settings``; ``server`` are more lines of
        ``[server]``.
        """
        for name in ("state", "keys"):
            (self.directory / name).mkdir(parents=True)
        key = self.directory / "keys" / "sealing-1.key"
        key.touch(mode=0o600)
        key.write_text(b64url_encode(os.urandom(32)))
        self.config.write_text(
            f'[server]\nlisten = "127.0.0.1:0"\n{server}\n\n'
            '[datastore]\npath = "state/dapd.sqlite"\n'
            f'sealing_keys = ["keys/sealing-1.key"]\n{settings}'
        )

    def add(
        self,
        file: LeaderTask | HelperTask,
        mode: HelperMode | None = None,
        batch_target_size: int | None = None,
    ) -> None:
        """What ``dapd task add`` does, with local settings."""
        config = load(self.config)
        opened = open_for_command(config.datastore.path, holder="a test", now=0)
        task = aggregator_task(file, TaskSettings(mode, batch_target_size))
        sealer = make_sealer(read_sealing_keys(config))
        opened.datastore.run_sync(add_task, task, sealer)
        opened.close()

    async def start(self, *program: str) -> bool:
        """Start it and wait until it listens; whether it got so far."""
        words = program or AS_OPERATORS_DO
        self.process = await forks.start_reading(*words, "--config", self.config)
        port: int | None = await self.nursery.start(self._read_log, self.process)
        self.wire.target = port
        return port is not None

    async def ended(self) -> int:
        """Wait for its end; the exit status."""
        assert self.process is not None
        status = await self.process.wait()
        self.wire.target = None
        return status

    async def kill(self) -> None:
        """SIGKILL; returns when the process is gone."""
        assert self.process is not None
        self.process.kill()
        await self.ended()

    async def stop(self) -> int:
        """SIGTERM; the exit status."""
        assert self.process is not None
        self.process.terminate()
        return await self.ended()

    def records(self) -> list[dict[str, Any]]:
        """Its log lines; what is no JSON is none."""
        return [json.loads(line) for line in self.lines if line.startswith("{")]

    async def logged(self, event: str, times: int = 1) -> list[dict[str, Any]]:
        """Its lines of this event, once there are so many."""
        while True:
            found = [line for line in self.records() if line["event"] == event]
            if len(found) >= times:
                return found
            await self._said.wait()

    async def wrote(self, text: str, times: int = 1) -> None:
        """Wait until so many of its lines contain this."""
        while sum(text in line for line in self.lines) < times:
            await self._said.wait()

    def read(self, sql: str) -> list[tuple[Any, ...]]:
        """A query on its database, while no daemon or one runs."""

        def look(tx: Tx) -> list[tuple[Any, ...]]:
            return tx.all(sql)

        opened = open_for_command(self.database, holder="a test", now=0)
        rows = opened.datastore.read_sync(look)
        opened.close()
        return rows

    def change(self, sql: str) -> None:
        """A statement on its database, while no daemon runs: what no daemon would do."""

        def execute(tx: Tx) -> None:
            tx.execute(sql)

        opened = open_for_command(self.database, holder="a test", now=0)
        opened.datastore.run_sync(execute)
        opened.close()

    def findings(self) -> list[Finding]:
        """What ``dapd datastore check`` would say."""
        return findings(self.database)

    async def _read_log(
        self, process: forks.Fork, *, task_status: trio.TaskStatus[int | None]
    ) -> None:
        """Keep its lines; started when it listens (the port), or has ended before (``None``)."""
        assert process.stdout is not None
        started = False
        rest = b""
        try:
            async for piece in process.stdout:
                *whole, rest = (rest + piece).split(b"\n")
                for line in whole:
                    self.lines.append(line.decode())
                    self._said.set()
                    self._said = trio.Event()
                    if not started and b'"event":"listening"' in line:
                        started = True
                        task_status.started(json.loads(line)["port"])
            self.lines += [rest.decode()] if rest else []
            if not started:
                task_status.started(None)
        finally:
            if process.returncode is None:
                process.kill()
            with trio.CancelScope(shield=True):
                await process.wait()
                await process.stdout.aclose()


async def start_pair(
    directory: Path, nursery: trio.Nursery, settings: str = QUICK, server: str = ""
) -> dict[str, DaemonProcess]:
    """A "leader" and a "helper", each at an address that stays; as ``DaemonProcess.make``."""
    daemons = {}
    for role in ("leader", "helper"):
        wire = Wire()
        await wire.serve(nursery)
        daemons[role] = DaemonProcess(directory / role, nursery, wire)
        daemons[role].make(settings, server)
    await start(*daemons.values())
    return daemons


async def start(*daemons: DaemonProcess) -> None:
    """All at once."""

    async def start_one(daemon: DaemonProcess) -> None:
        assert await daemon.start(), daemon.lines

    async with trio.open_nursery() as nursery:
        for daemon in daemons:
            nursery.start_soon(start_one, daemon)


async def run_command(*arguments: object, stdin: bytes = b"") -> tuple[int, str, str]:
    """``dapd ARGUMENTS``: exit status, standard output, standard error."""
    return await forks.run(*AS_OPERATORS_DO, *arguments, stdin=stdin)


def assert_calm(daemons: Sequence[DaemonProcess]) -> None:
    """No traceback and no error in any log."""
    for daemon in daemons:
        loud = [
            line
            for line in daemon.lines
            if "Traceback" in line or '"level":"error"' in line or not line.startswith("{")
        ]
        assert not loud, "\n".join(loud)
