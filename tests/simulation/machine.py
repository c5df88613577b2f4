"""A machine with one Aggregator: it can be killed, stopped, restored, filled, and its clock set."""

from __future__ import annotations

import random
import shutil
import sqlite3
from collections.abc import Callable
from contextlib import closing, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import msgspec
import trio

from dapd import app
from dapd.config import Config
from dapd.datastore import Tx, open_for_command
from dapd.datastore.backup import take
from dapd.datastore.opening import Opened
from dapd.errors import DatastoreError
from dapd.messages.common import b64url_encode
from dapd.process import notify, reload
from dapd.process.notify import Notifier
from dapd.protocol.task import Task
from dapd.runtime.context import Context
from dapd.runtime.rates import Rates
from dapd.server import quart_app
from dapd.server.front import App, front
from dapd.upkeep import history, lag
from tests.simulation.clock import MachineClock, WorldClock
from tests.simulation.determinism import Killed, Process, current
from tests.simulation.network import Call, Network
from tests.simulation.trace import Trace

T = TypeVar("T")
_RESTART_AFTER = 5.0
_NOT_SIMULATED = (notify.run, lag.run, history.run, reload.run)
"""Loops that watch the process itself, or a file that no simulated operator changes."""
_UNLIMITED_PAGES = 0xFFFFFFFE


class _ChanceRates(Rates):
    """Measures nothing: chance says how long a job took, so that ``auto`` decides both ways."""

    def __init__(self, chance: random.Random) -> None:
        super().__init__(cores=2)
        self._chance = chance

    def note(self, task: Task, seconds_per_report: float) -> None:
        super().note(task, self._chance.choice((1e-5, 1e-3, 1e-1)))


class Life(Process):
    """One process of a machine's Aggregator, from its start to its end."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.scope = trio.CancelScope()
        self.stopping = trio.Event()
        self.ended = trio.Event()
        self.since = trio.current_time()
        self.context: Context | None = None
        self.app: App | None = None
        self.nursery: trio.Nursery | None = None

    def __str__(self) -> str:
        return self.name


@dataclass
class Machine:
    """One Aggregator's machine. ``life`` is ``None`` while nothing runs."""

    name: str
    directory: Path
    settings: dict[str, dict[str, Any]]
    world: WorldClock
    network: Network
    chance: random.Random
    trace: Trace
    nursery: trio.Nursery
    clock: MachineClock = field(init=False)
    life: Life | None = None
    full: bool = False
    restored: bool = False
    quarantined_ahead: bool = False
    """A restore under a clock that was ahead has closed batches up to that time."""
    operator: trio.Lock = field(default_factory=trio.Lock)
    _sealing_keys: list[Path] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.clock = MachineClock(self.world)
        self.directory.mkdir(parents=True)
        self.add_sealing_key()

    @property
    def database(self) -> Path:
        return self.directory / "dapd.sqlite"

    @property
    def context(self) -> Context:
        assert self.life is not None
        assert self.life.context is not None
        return self.life.context

    @property
    def is_up(self) -> bool:
        return self.life is not None and self.life.app is not None

    def add_sealing_key(self) -> None:
        """Make a sealing key, the first from the next start on."""
        key = self.directory / f"sealing-{len(self._sealing_keys)}.key"
        key.touch(mode=0o600)
        key.write_text(b64url_encode(self.chance.randbytes(32)))
        self._sealing_keys.insert(0, key)

    async def start(self) -> None:
        """Start a process, again and again if it can't; return once it serves."""
        while self.life is None:
            life = self.life = Life(self.name)
            await self.nursery.start(self._live, life)
            if life.ended.is_set():
                self.life = None
                await trio.sleep(_RESTART_AFTER)

    async def kill(self) -> None:
        """End the process at once, as SIGKILL does; what it had not committed is gone."""
        if (life := self.life) is not None:
            life.dead, life.app = True, None
            life.scope.cancel()
            await life.ended.wait()
            self.life = None

    async def stop(self) -> None:
        """End the process in order, as SIGTERM does."""
        if (life := self.life) is not None:
            life.stopping.set()
            await life.ended.wait()
            self.life = None

    def serve(self, request: Any, body: bytes, *, whole: bool) -> Call:
        """Begin to serve a request."""
        call = Call(_scope(request), body, whole, self.network.chance)
        life = self.life
        if life is None or life.app is None or life.nursery is None:
            call.finished.set()  # connection refused
        else:
            life.nursery.start_soon(self._serve, life, life.app, call)
        return call

    async def _serve(self, life: Life, served: App, call: Call) -> None:
        current.set(life)
        await call.run(served, self.clock.now() / 1000)

    async def _live(self, life: Life, *, task_status: trio.TaskStatus[None]) -> None:
        current.set(life)
        started = False
        try:
            with life.scope, trio.CancelScope() as grace:
                config = self.config()
                async with app.daemon_context(config, self.clock, Notifier()) as context:
                    context.rates = _ChanceRates(self.chance)
                    life.context = context
                    self._limit(context)
                    async with trio.open_nursery() as nursery:
                        for loop in app.LOOPS:
                            if loop not in _NOT_SIMULATED:
                                nursery.start_soon(loop, context)
                        life.nursery = nursery
                        life.app = front(context, quart_app.build(context))  # type: ignore[arg-type]
                        self.trace.note("started")
                        started = True
                        task_status.started()
                        await life.stopping.wait()
                        grace.deadline = trio.current_time() + config.shutdown.grace
                        life.app = None
                        context.drain()
            self.trace.note("ended", killed=life.dead, cut_short=grace.cancelled_caught)
        except BaseException as error:
            could_not_start = self.full and not started and _is_of_datastore(error)
            if not life.dead and not could_not_start:
                raise
            self.trace.note("died")
        finally:
            life.app = life.nursery = None
            life.ended.set()
            if not started:
                task_status.started()

    def accept_clock(self) -> None:
        """Confirm the clock if it is held and right, as an operator with `dapd clock accept`."""
        safe_clock = self.context.safe_clock
        if not self.clock.offset and safe_clock.look().held:
            safe_clock.accept()

    def set_full(self, full: bool) -> None:
        """Let the database's file grow no further, or again."""
        self.full = full
        if self.life is not None and self.life.context is not None:
            self._limit(self.life.context)

    def _limit(self, context: Context) -> None:
        writer = context.datastore._writer
        with suppress(sqlite3.ProgrammingError):  # the process is ending and has closed it
            used = writer.execute("PRAGMA page_count").fetchone()[0]
            most = used if self.full else _UNLIMITED_PAGES
            writer.execute(f"PRAGMA max_page_count = {most}").fetchall()

    def back_up(self) -> None:
        """Take a backup, in place of the one before."""
        if not self.database.exists():
            return
        target = self.directory / "backup"
        target.mkdir(exist_ok=True)
        take(self.database, target, lambda _: "copy.sqlite", now=self.clock.now(), spare=0)

    def restore(self) -> None:
        """Replace the database by its backup, if there is one; while nothing runs."""
        copy = self.directory / "backup" / "copy.sqlite"
        if not copy.exists():
            return
        for suffix in ("-wal", "-shm"):
            Path(f"{self.database}{suffix}").unlink(missing_ok=True)
        shutil.copyfile(copy, self.database)
        self.restored = True

    def command(self, fn: Callable[..., Any], *args: Any) -> Any:
        """Run a transaction as a command does, beside the daemon or without it."""
        with closing(self._open()) as opened:
            return opened.datastore.run_sync(fn, *args)

    def look(self, fn: Callable[[Tx], T]) -> T:
        """Read the database, which need not be served."""
        if self.is_up:
            return self.context.datastore.read_sync(fn)
        with closing(self._open()) as opened:
            return opened.datastore.read_sync(fn)

    def was_quiet_for(self, ms: int) -> bool:
        """Whether a daemon has served for so long, with room on the disk and the right time."""
        life = self.life
        if life is None or life.app is None or self.full or self.clock.offset:
            return False
        return 1000 * (trio.current_time() - max(life.since, self.clock.set_at)) >= ms

    def _open(self) -> Opened:
        return open_for_command(self.database, holder="a command", now=self.clock.now())

    def config(self) -> Config:
        tables: dict[str, dict[str, Any]] = {
            **self.settings,
            "datastore": {"path": self.database, "sealing_keys": list(self._sealing_keys)},
            "disk": {"min_free_bytes": 0},
        }
        return msgspec.convert(tables, Config, dec_hook=lambda _, value: value)


def _is_of_datastore(error: BaseException) -> bool:
    if isinstance(error, BaseExceptionGroup):
        return all(_is_of_datastore(each) for each in error.exceptions)
    return isinstance(error, DatastoreError | Killed)


def _scope(request: Any) -> dict[str, Any]:
    return {
        "type": "http",
        "asgi": {"version": "3.0"},
        "http_version": "1.1",
        "method": request.method,
        "headers": [(name.lower(), value) for name, value in request.headers.raw],
        "scheme": "http",
        "path": request.url.path,
        "raw_path": request.url.raw_path.split(b"?")[0],
        "query_string": request.url.query,
        "server": ("127.0.0.1", request.url.port),
        "client": ("127.0.0.1", 1),
        "root_path": "",
    }
