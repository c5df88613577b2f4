"""One of the demo's two Aggregators, as a process."""

from __future__ import annotations

import json
import subprocess
import sys
from collections import Counter, deque
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import trio

from dapd.demo.view import DemoFailed, Role, View

_START_SECONDS = 30.0
_TAIL_LINES = 20


@dataclass
class Daemon:
    """An Aggregator with its files below ``directory``; ``on_line`` gets each of its log lines."""

    role: Role
    directory: Path
    port: int
    view: View
    on_line: Callable[[Role, dict[str, Any]], None]
    tail: deque[str] = field(default_factory=lambda: deque(maxlen=_TAIL_LINES))
    counts: Counter[tuple[str, str]] = field(default_factory=Counter)
    """The number of log lines by (task id, event)."""
    _process: trio.Process | None = None
    _listening: trio.Event = field(default_factory=trio.Event)
    _stopping: bool = False

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/"

    @property
    def config(self) -> str:
        """The path of its configuration below the directory."""
        return f"{self.role}/dapd.toml"

    async def start(self, nursery: trio.Nursery) -> None:
        """Start the process and wait until it listens."""
        self.view.command(f"dapd --config {self.config} &")
        self._process = await nursery.start(
            partial(
                trio.run_process,
                [sys.executable, "-m", "dapd", "--config", self.config],
                cwd=self.directory,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                check=False,
            )
        )
        nursery.start_soon(self._read_log)
        with trio.move_on_after(_START_SECONDS) as waiting:
            await self._listening.wait()
        if waiting.cancelled_caught:
            raise DemoFailed(f"the {self.role} does not listen after {_START_SECONDS:.0f} s")

    async def stop(self) -> None:
        """Stop the process with SIGTERM. Raises ``DemoFailed`` unless it exits with 0."""
        assert self._process is not None
        self._stopping = True
        self._process.terminate()
        status = await self._process.wait()
        if status:
            raise DemoFailed(f"the {self.role} stopped with exit status {status}")

    async def _read_log(self) -> None:
        assert self._process is not None
        assert self._process.stdout is not None
        rest = b""
        with (self.directory / self.role / "dapd.log").open("wb") as file:
            async for data in self._process.stdout:
                file.write(data)
                file.flush()
                *lines, rest = (rest + data).split(b"\n")
                for line in lines:
                    self._read_line(line)
        if not self._stopping:
            status = await self._process.wait()
            raise DemoFailed(f"the {self.role} ended by itself, with exit status {status}")

    def _read_line(self, text: bytes) -> None:
        self.tail.append(text.decode(errors="replace"))
        try:
            line = json.loads(text)
        except ValueError:
            return
        event = line["event"]
        self.counts[line.get("task_id", ""), event] += 1
        if event == "listening":
            self._listening.set()
        self.on_line(self.role, line)
