"""A daemon that reads a configuration file, in this process."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import trio

from dapd.app import Daemon, run_daemon
from dapd.config.loading import load
from dapd.messages.common import b64url_encode
from dapd.runtime.clock import Clock

BASE = '[datastore]\npath = "dapd.sqlite"\nsealing_keys = ["k"]\n'


def write_config(directory: Path, text: str) -> Path:
    """Write a configuration file, with a free port unless ``text`` names one; return its path."""
    path = directory / "dapd.toml"
    listen = "" if "[server]" in text else '[server]\nlisten = "127.0.0.1:0"\n'
    path.write_text(f"{BASE}{listen}{text}")
    return path


@asynccontextmanager
async def running_daemon(path: Path, clock: Clock | None = None) -> AsyncIterator[Daemon]:
    """The daemon that this configuration file describes."""
    key = path.parent / "k"
    key.touch(mode=0o600)
    key.write_text(b64url_encode(bytes(32)))
    stop = trio.Event()
    async with trio.open_nursery() as nursery:

        async def serve(*, task_status: trio.TaskStatus[Daemon]) -> None:
            await run_daemon(
                load(path), stop=stop, clock=clock, config_path=path, task_status=task_status
            )

        yield await nursery.start(serve)
        stop.set()
