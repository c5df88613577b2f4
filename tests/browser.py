"""Headless Chromium driven by its DevTools protocol over a pipe.

Nothing is polled: what a page says and that it has loaded are events. Needs Debian's ``chromium``.
"""

from __future__ import annotations

import base64
import fcntl
import json
import os
import shutil
import subprocess
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

import trio

CHROMIUM = shutil.which("chromium")
_FLAGS = (
    "--headless=new",
    "--no-sandbox",  # a test's container may have no user namespaces
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-gpu",
    "--hide-scrollbars",
    "--remote-debugging-pipe",
)
# Chromium reads from file descriptor 3 and writes to 4.
_WITH_PIPE = 'read=$1 write=$2; shift 2; exec "$@" 3<&"$read" 4>&"$write"'
_CHUNK = 1 << 16


class Browser:
    """One process with one tab."""

    def __init__(self, to: trio.lowlevel.FdStream, back: trio.lowlevel.FdStream) -> None:
        self._to = to
        self._back = back
        self._calls = 0
        self._session: str | None = None
        self._answers: dict[int, trio.MemorySendChannel[dict[str, Any]]] = {}
        self._loaded = trio.Event()
        self.complaints: list[str] = []
        """What the page's console was told, such as whatever its policy forbids."""
        self._complained = trio.Event()

    async def open_tab(self) -> None:
        target = await self.call("Target.createTarget", url="about:blank")
        attached = await self.call(
            "Target.attachToTarget", targetId=target["targetId"], flatten=True
        )
        self._session = attached["sessionId"]
        for domain in ("Page", "Log", "Runtime"):
            await self.call(f"{domain}.enable")

    async def call(self, method: str, **params: object) -> dict[str, Any]:
        """The command's result."""
        self._calls += 1
        number = self._calls
        send, receive = trio.open_memory_channel[dict[str, Any]](1)
        self._answers[number] = send
        command = {"id": number, "method": method, "params": params}
        if self._session:
            command["sessionId"] = self._session
        await self._to.send_all(json.dumps(command).encode() + b"\0")
        answer = await receive.receive()
        assert "error" not in answer, answer
        result: dict[str, Any] = answer["result"]
        return result

    async def visit(self, url: str) -> None:
        """Returns once the page and all that belongs to it has loaded."""
        self._loaded = trio.Event()
        result = await self.call("Page.navigate", url=url)
        assert "errorText" not in result, result
        await self._loaded.wait()

    async def reload(self) -> None:
        """As ``visit``, of the same page."""
        self._loaded = trio.Event()
        await self.call("Page.reload")
        await self._loaded.wait()

    async def evaluate(self, expression: str) -> Any:
        """The value of a JavaScript expression; of a promise, what it comes to."""
        result = await self.call(
            "Runtime.evaluate", expression=expression, awaitPromise=True, returnByValue=True
        )
        assert "exceptionDetails" not in result, result
        return result["result"].get("value")

    async def complained(self, times: int) -> list[str]:
        """Its complaints, once there are so many: they come beside the answers."""
        while len(self.complaints) < times:
            await self._complained.wait()
        return self.complaints

    async def screen(self, width: int, height: int, scheme: str = "light") -> None:
        """Be a screen of this size in CSS pixels; a narrow one is a phone's."""
        await self.call(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            deviceScaleFactor=1,
            mobile=width < 600,
        )
        features = [{"name": "prefers-color-scheme", "value": scheme}]
        await self.call("Emulation.setEmulatedMedia", features=features)

    async def screenshot(self) -> bytes:
        """The whole page as PNG, also what lies below the screen."""
        shot = await self.call("Page.captureScreenshot", captureBeyondViewport=True)
        return base64.b64decode(shot["data"])

    async def listen(self) -> None:
        rest = b""
        while data := await self._back.receive_some(_CHUNK):
            *messages, rest = (rest + data).split(b"\0")
            for message in messages:
                self._hear(json.loads(message))

    def _hear(self, message: dict[str, Any]) -> None:
        if "id" in message:
            self._answers.pop(message["id"]).send_nowait(message)
            return
        params = message["params"]
        match message["method"]:
            case "Page.loadEventFired":
                self._loaded.set()
            case "Log.entryAdded":
                self._complain(params["entry"]["text"])
            case "Runtime.exceptionThrown":
                self._complain(params["exceptionDetails"]["text"])
            case "Runtime.consoleAPICalled":
                self._complain(json.dumps(params["args"]))
            case _:
                pass

    def _complain(self, text: str) -> None:
        self.complaints.append(text)
        self._complained.set()
        self._complained = trio.Event()


@asynccontextmanager
async def open_browser(profile: Path) -> AsyncIterator[Browser]:
    """A browser with an empty profile in ``profile``, and one tab."""
    assert CHROMIUM is not None
    ours_out, read = _pipe()
    write, ours_in = _pipe()
    command = [
        "bash", "-c", _WITH_PIPE, "bash", str(read), str(write),
        CHROMIUM, *_FLAGS, f"--user-data-dir={profile}",
    ]  # fmt: skip
    async with (
        trio.lowlevel.FdStream(ours_out) as to,
        trio.lowlevel.FdStream(ours_in) as back,
        trio.open_nursery() as nursery,
    ):
        await nursery.start(
            partial(
                trio.run_process,
                command,
                pass_fds=(read, write),
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                check=False,
            )
        )
        os.close(read)
        os.close(write)
        browser = Browser(to, back)
        nursery.start_soon(browser.listen)
        await browser.open_tab()
        yield browser
        nursery.cancel_scope.cancel()


def _pipe() -> tuple[int, int]:
    """The writing and the reading end, both far from 3 and 4."""
    ends = os.pipe()
    far = [fcntl.fcntl(end, fcntl.F_DUPFD_CLOEXEC, 10) for end in ends]
    for end in ends:
        os.close(end)
    return far[1], far[0]
