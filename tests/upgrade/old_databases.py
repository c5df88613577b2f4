"""The databases in ``schema-N``: what each contains, and how to run a pair on them.

Their tasks name hosts that do not exist; a resolver gives the running pair's ports for those.
"""

from __future__ import annotations

import lzma
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import trio
from trio.abc import HostnameResolver

from dapd.http import DapHttp
from dapd.messages.common import b64url_encode
from dapd.taskfile import CollectorTask, HelperTask, LeaderTask, TaskFiles
from dapd.taskfile.files import ClientTask, read_task_file
from dapd.testing import Pair, PairTask
from tests.clock import TIME, ManualClock
from tests.pair_harness import TaskHarness, open_pair, query_at

HERE = Path(__file__).parent
ROLES = ("leader", "helper")
SEALING_KEY = bytes(range(32, 64))
"""Of both Aggregators."""
COLLECTED = [1, 0, 1, 1, 0, 1]
"""Of the interval before ``TIME``: they are collected."""
IN_A_JOB = [1, 1, 1, 0, 0]
"""Of ``TIME``: in a job that the Helper has never seen."""
WAITING = [1, 1, 0]
"""Of ``TIME``: in no job. Those of the leader-selected task are as many and the same."""
BEFORE_TIME = query_at(TIME - 1)
NO_SMALL_JOBS: dict[str, dict[str, Any]] = {"leader": {"min_job_size": 5, "max_wait": 3600}}


class _Names(HostnameResolver):
    """``leader.upgrade.invalid`` and ``helper.upgrade.invalid`` are the pair's ports."""

    pair: Pair | None = None

    async def getaddrinfo(
        self,
        host: bytes | None,
        port: bytes | str | int | None,
        family: int = 0,
        type: int = 0,
        proto: int = 0,
        flags: int = 0,
    ) -> list[Any]:
        if self.pair is None or host is None:
            raise socket.gaierror(socket.EAI_AGAIN, "the pair is starting")
        side = self.pair.leader if host.startswith(b"leader.") else self.pair.helper
        where = ("127.0.0.1", side.port)
        return [(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP, "", where)]

    async def getnameinfo(self, sockaddr: Any, flags: int) -> tuple[str, str]:
        raise NotImplementedError


def url(role: str) -> str:
    """The endpoint of an Aggregator, as its tasks name it."""
    return f"http://{role}.upgrade.invalid/"


@asynccontextmanager
async def pair_of(directory: Path, clock: ManualClock) -> AsyncIterator[tuple[Pair, DapHttp]]:
    """A running pair on the databases below ``directory``, made if there are none."""
    for role in ROLES:
        (directory / role).mkdir(exist_ok=True)
        key = directory / role / "sealing.key"
        key.touch(mode=0o600)
        key.write_text(b64url_encode(SEALING_KEY))
    names = _Names()
    trio.socket.set_custom_hostname_resolver(names)
    async with open_pair(directory, leader=NO_SMALL_JOBS, clock=clock) as (pair, http):
        names.pair = pair
        yield pair, http


def unpack(schema: Path, directory: Path) -> None:
    """Put the databases of a schema where a pair expects its own."""
    for role in ROLES:
        (directory / role).mkdir()
        database = directory / role / "dapd.sqlite"
        database.write_bytes(lzma.decompress((schema / f"{role}.sqlite.xz").read_bytes()))


def harness(schema: Path, mode: str, pair: Pair, http: DapHttp) -> TaskHarness:
    """The task of that batch mode; each party's file lies beside the databases."""
    leader, helper, collector, client = (
        read_task_file(schema / mode / f"{party}.toml")
        for party in ("leader", "helper", "collector", "client")
    )
    assert isinstance(leader, LeaderTask)
    assert isinstance(helper, HelperTask)
    assert isinstance(collector, CollectorTask)
    assert isinstance(client, ClientTask)
    return TaskHarness(PairTask(TaskFiles(leader, helper, collector, client), pair), http)
