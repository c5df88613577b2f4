"""What the benchmarks share: a real daemon, a task, and a cheap HTTP client."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import trio

from dapd.http import DapHttp, Ready
from dapd.messages.common import HpkeConfig, HpkeConfigList, MediaType
from dapd.taskfile import (
    HelperTask,
    LeaderTask,
    TaskDraft,
    TaskFiles,
    new_task,
    parse_vdaf_spec,
    write_task_file,
)

SUITE = (0x0020, 0x0001, 0x0001)
PRECISION = 3600


@dataclass(frozen=True)
class Answer:
    """One HTTP response."""

    status: int
    headers: dict[str, str]
    body: bytes


class Connection:
    """A minimal HTTP/1.1 client, so that the load costs little."""

    def __init__(self, stream: trio.SocketStream) -> None:
        self._stream = stream
        self._buffer = bytearray()

    async def ask(
        self,
        method: str,
        path: str,
        message: MediaType,
        body: bytes = b"",
        token: str | None = None,
    ) -> Answer:
        head = (
            f"{method} {path} HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {token}\r\n"
            f"Content-Type: {message.value}\r\n"
            f"Content-Length: {len(body)}\r\n\r\n"
        )
        await self._stream.send_all(head.encode() + body)
        while (end := self._buffer.find(b"\r\n\r\n")) < 0:
            await self._more()
        status, *lines = self._buffer[:end].decode("latin-1").split("\r\n")
        headers = {
            name.lower(): value.strip() for name, _, value in (x.partition(":") for x in lines)
        }
        size = int(headers.get("content-length", "0"))
        del self._buffer[: end + 4]
        while len(self._buffer) < size:
            await self._more()
        content = bytes(self._buffer[:size])
        del self._buffer[:size]
        return Answer(int(status.split()[1]), headers, content)

    async def _more(self) -> None:
        received = await self._stream.receive_some(1 << 20)
        if not received:
            raise ConnectionError("the daemon closed the connection")
        self._buffer += received


@contextmanager
def daemon(
    directory: Path,
    role: str,
    port: int,
    task: LeaderTask | HelperTask,
    *,
    mode: str = "auto",
    prepare: Callable[[Path], None] | None = None,
) -> Iterator[subprocess.Popen[bytes]]:
    """Run an Aggregator with one task, as a process, until the context ends.

    ``mode`` is a Helper's; ``prepare`` is called with the daemon's directory before it starts.
    """
    command = [sys.executable, "-m", "dapd"]
    url = f"http://127.0.0.1:{port}/"
    subprocess.run(
        [*command, "init", "--role", role, "--url", url, "--dir", str(directory)],
        check=True, stdout=subprocess.DEVNULL,
    )  # fmt: skip
    config = directory / "dapd.toml"
    text = config.read_text().replace('mode = "async"', f'mode = "{mode}"')
    config.write_text(text)
    file = directory / "task.toml"
    write_task_file(file, task)
    subprocess.run(
        [*command, "--config", str(config), "task", "add", str(file)],
        check=True,
        stdout=subprocess.DEVNULL,
    )
    if prepare is not None:
        prepare(directory)
    with (directory / "log").open("wb") as log:
        process = subprocess.Popen([*command, "--config", str(config)], stdout=log, stderr=log)
        try:
            yield process
        finally:
            process.terminate()
            process.wait()


def peak_megabytes(process: subprocess.Popen[bytes]) -> float:
    """Return the daemon's peak memory so far."""
    status = Path(f"/proc/{process.pid}/status").read_text()
    line = next(line for line in status.splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) / 1024


def make_task(vdaf: str, leader_url: str, helper_url: str) -> TaskFiles:
    """Return the files of a new task."""
    draft = TaskDraft(
        vdaf=parse_vdaf_spec(vdaf),
        leader_aggregator_endpoint=leader_url,
        helper_aggregator_endpoint=helper_url,
        batch_mode="time-interval",
        time_precision=PRECISION,
        min_batch_size=100,
    )
    return new_task(draft)


async def hpke_config(http: DapHttp, url: str) -> HpkeConfig:
    """Wait for an Aggregator to answer, and return its key.

    Raises ``trio.TooSlowError`` after a minute; the daemon's log says why it doesn't answer.
    """
    with trio.fail_after(60):
        # There is no event from another process to wait for.
        while not isinstance(answer := await http.get(url, MediaType.HPKE_CONFIG_LIST), Ready):  # noqa: ASYNC110
            await trio.sleep(0.05)
    return HpkeConfigList.decode(answer.body).configs[0]
