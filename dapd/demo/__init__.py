"""``dapd demo``: two real daemons, their tasks, many clients and a collector on one machine.

The clients answer two questions: a histogram in the time-interval batch mode with an asynchronous
Helper, then a sum in the leader-selected mode with a synchronous one. The collected results must
equal the truth, which only the demo knows. ``dapd.cli.demo`` prints what happens.
"""

from __future__ import annotations

import random
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import trio

from dapd.client import Client
from dapd.collector import Collector, Query, Result
from dapd.demo.daemon import Daemon
from dapd.demo.questions import QUESTIONS, Outcome, Question
from dapd.demo.view import DemoFailed, Role, View
from dapd.errors import PeerError, innermost
from dapd.messages.common import b64url_encode
from dapd.server.sockets import reserved_port
from dapd.taskfile import read_task_file

_PRECISION = 3600
_MIN_BATCH_SIZE = 100
_UPLOADS_AT_ONCE = 50
# Log lines are shown this many seconds late, to sort those of both processes by their timestamps.
_SHOW_DELAY = 0.2


class Demo:
    """One run of the demo, with all its files in ``directory``.

    ``daemons`` contains the daemons' logs, also after the run.

    Args:
        directory: an empty directory.
        clients: the number of clients.
        seed: the seed of the random answers.
        view: displays what happens.
    """

    def __init__(self, directory: Path, clients: int, seed: int, view: View) -> None:
        self._directory = directory
        self._clients = clients
        self._random = random.Random(seed)  # noqa: S311 - the same truth again for the same seed
        self._view = view
        self._ports = ExitStack()
        ports = [self._ports.enter_context(reserved_port()) for _ in range(2)]
        self.leader = Daemon("leader", directory, ports[0], view, self._queue_line)
        self.helper = Daemon("helper", directory, ports[1], view, self._queue_line)
        self.daemons = (self.leader, self.helper)
        self._queued: list[tuple[float, Role, dict[str, Any]]] = []
        self.task_ids: dict[str, str] = {}
        """The task id of each question, as base64url, by the question's name."""

    def run(self) -> list[Outcome]:
        """Run the demo. Raises ``DemoFailed`` if anything is not as promised."""
        try:
            return trio.run(self._run)
        except (BaseExceptionGroup, PeerError) as error:
            cause = _cause(error)
            if isinstance(cause, PeerError):
                raise DemoFailed(str(cause)) from error
            raise cause from None
        finally:
            self._ports.close()
            self._show_lines(0)

    async def _run(self) -> list[Outcome]:
        view, begun = self._view, trio.current_time()
        view.setting_up()
        await self._set_up()
        async with trio.open_nursery() as watch:
            watch.start_soon(self._keep_showing_lines)
            watch.start_soon(_fail_on_sigterm)
            async with trio.open_nursery() as nursery:
                async with trio.open_nursery() as starting:
                    for daemon in self.daemons:
                        starting.start_soon(daemon.start, nursery)
                self._show_lines(0)
                view.ready(trio.current_time() - begun)
                outcomes = [await self._ask(question) for question in QUESTIONS]
                begun = trio.current_time()
                for daemon in self.daemons:
                    await daemon.stop()
            watch.cancel_scope.cancel()
        view.stopped(trio.current_time() - begun)
        return outcomes

    def _queue_line(self, role: Role, line: dict[str, Any]) -> None:
        self._queued.append((time.monotonic(), role, line))

    def _show_lines(self, age: float) -> None:
        """Pass the log lines that were queued at least ``age`` seconds ago to the view."""
        until = time.monotonic() - age
        due = [each for each in self._queued if each[0] <= until]
        self._queued = [each for each in self._queued if each[0] > until]
        for _, role, line in sorted(due, key=lambda each: each[2]["timestamp"]):
            self._view.log(role, line)

    async def _keep_showing_lines(self) -> None:
        while True:
            await trio.sleep(_SHOW_DELAY / 2)
            self._show_lines(_SHOW_DELAY)

    async def _set_up(self) -> None:
        """Make the tasks, then both Aggregators, with the commands that an operator types."""
        async with trio.open_nursery() as nursery:
            for question in QUESTIONS:
                nursery.start_soon(self._make_task, question)
        async with trio.open_nursery() as nursery:
            for daemon in self.daemons:
                nursery.start_soon(self._prepare, daemon)

    async def _make_task(self, question: Question) -> None:
        size = min(_MIN_BATCH_SIZE, self._clients)
        await self._command(
            f"task new --vdaf {question.vdaf} --batch-mode {question.batch_mode}"
            f" --time-precision {_PRECISION} --min-batch-size {size}"
            f" --leader {self.leader.url} --helper {self.helper.url} --out {question.name}"
        )
        task = read_task_file(self._directory / question.name / "client.toml")
        self.task_ids[question.name] = b64url_encode(task.task_id)

    async def _prepare(self, daemon: Daemon) -> None:
        await self._command(f"init --role {daemon.role} --url {daemon.url} --dir {daemon.role}")
        with (self._directory / daemon.config).open("a") as file:
            file.write('\n[log]\nlevel = "debug"\n')
        for question in QUESTIONS:
            await self._command(
                f"--config {daemon.config} task add {question.name}/{daemon.role}.toml"
            )
            if setting := self._setting(question, daemon):
                await self._command(
                    f"--config {daemon.config} task set {setting} -- {self.task_ids[question.name]}"
                )

    def _setting(self, question: Question, daemon: Daemon) -> str | None:
        if daemon is self.helper:  # `dapd init` made it asynchronous
            return "--helper-mode sync" if question.helper_mode == "sync" else None
        by_leader = question.batch_mode == "leader-selected"
        return f"--batch-target-size {self._clients}" if by_leader else None

    async def _command(self, arguments: str) -> None:
        self._view.command(f"dapd {arguments}")
        done = await trio.run_process(
            [sys.executable, "-m", "dapd", *shlex.split(arguments)],
            cwd=self._directory,
            capture_stdout=True,
            stderr=subprocess.STDOUT,
            check=False,
        )
        if done.returncode:
            said = done.stdout.decode(errors="replace").strip()
            raise DemoFailed(f"`dapd {arguments}` failed: {said}")

    async def _ask(self, question: Question) -> Outcome:
        clock = trio.current_time
        self._view.asking(question)
        answers = [question.draw(self._random) for _ in range(self._clients)]
        now = int(time.time())
        begun = clock()
        with self._view.progress("uploading", self._clients) as advance:
            await self._upload(question, answers, now, advance)
        uploaded = clock()
        with self._view.progress("collecting", None):
            result = await self._collect(question, now)
        ended = clock()
        truth = question.truth(answers)
        outcome = Outcome(question, truth, result, uploaded - begun, ended - uploaded)
        await trio.sleep(_SHOW_DELAY)
        self._show_lines(0)
        self._view.outcome(outcome)
        if difference := outcome.difference(self._clients):
            raise DemoFailed(f"{question.name}: {difference}")
        return outcome

    async def _upload(
        self, question: Question, answers: list[int], now: int, advance: Callable[[], None]
    ) -> None:
        """Upload each answer in a request of its own, many at once."""
        remaining: Iterator[int] = iter(answers)

        async def upload_some() -> None:
            for answer in remaining:
                uploaded = await client.upload([answer], time=now)
                if uploaded.rejected:
                    reason = uploaded.rejected[0].reason
                    raise DemoFailed(f"{question.name}: the Leader rejects a report: {reason}")
                advance()

        task = self._directory / question.name / "client.toml"
        async with Client(task) as client, trio.open_nursery() as nursery:
            for _ in range(min(_UPLOADS_AT_ONCE, len(answers))):
                nursery.start_soon(upload_some)

    async def _collect(self, question: Question, now: int) -> Result:
        query = (
            Query.interval(now // _PRECISION * _PRECISION, _PRECISION)
            if question.batch_mode == "time-interval"
            else Query.next_batch()
        )
        # Far more than it takes, so that a demo that hangs fails.
        limit = 60 + self._clients / 100
        file = self._directory / question.name / "collector.toml"
        try:
            with trio.fail_after(limit):
                async with Collector(file) as collector, collector.collect(query) as result:
                    return result
        except trio.TooSlowError:
            raise DemoFailed(f"{question.name}: no result after {limit:.0f} s") from None


async def _fail_on_sigterm() -> None:
    """End the demo on SIGTERM; otherwise the daemons would outlive it."""
    with trio.open_signal_receiver(signal.SIGTERM) as signals:
        async for _ in signals:
            raise DemoFailed("it received SIGTERM")


def _cause(error: BaseException) -> BaseException:
    """Return the first failure in the groups that nurseries wrap it in; Ctrl-C takes precedence."""
    if isinstance(error, BaseExceptionGroup) and error.subgroup(KeyboardInterrupt):
        return KeyboardInterrupt()
    return innermost(error)
