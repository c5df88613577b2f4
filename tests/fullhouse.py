"""A Leader that was stopped with something in every sealed column, and the Helper it waits for.

Two reports each are aggregated for ``SUMMED`` and for ``FROZEN``, for which a collection waits for
the Helper's share; the two of ``SENT`` are in a job whose answer is due; the one of ``WAITING`` is
in no job yet.
"""

from __future__ import annotations

import secrets
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Concatenate, ParamSpec, TypeVar

import trio

from dapd.collector import Query
from dapd.commits.tasks import rekey_task
from dapd.config import Config
from dapd.crypto import make_sealer, sealing_key_id
from dapd.datastore import Tx, sealed
from dapd.datastore.sqlite import Row
from dapd.messages.common import b64url_decode, b64url_encode
from dapd.protocol.task import TaskSettings
from dapd.runtime.context import Context
from dapd.taskfile import aggregator_task
from dapd.testing.pair import Aggregator
from tests.build import open_store
from tests.paths.hands import NOON, PRECISION, Hands, hand_pair, until

P = ParamSpec("P")
T = TypeVar("T")

SUMMED, FROZEN, SENT, WAITING = NOON - 3, NOON - 2, NOON - 1, NOON
_LEADER = {"leader": {"min_job_size": 2, "max_wait": 3600, "retry_min": 0.05, "retry_max": 0.2}}
_STORED = "SELECT 1 FROM aggregation_jobs WHERE state = 'stored'"
_ASKED = "SELECT 1 FROM collection_jobs WHERE state = 'frozen' AND sends > 0"


def of(time: int) -> Query:
    """The query for one bucket."""
    return Query.interval(time * PRECISION, PRECISION)


@dataclass
class FullHouse:
    """Both are stopped."""

    hands: Hands

    @property
    def leader(self) -> Aggregator:
        return self.hands.pair.leader

    @property
    def database(self) -> Path:
        return self.leader.directory / "dapd.sqlite"

    @property
    def toml(self) -> Path:
        """The Leader's configuration as a file, for commands."""
        return self.leader.directory / "dapd.toml"

    def key(self, name: str) -> bytes:
        """A sealing key of the Leader, made if need be; "sealing" is that which sealed all."""
        file = self._file(name)
        if not file.exists():
            file.touch(mode=0o600)
            file.write_text(b64url_encode(secrets.token_bytes(32)))
        return b64url_decode(file.read_text())

    def use_keys(self, *names: str) -> Config:
        """Configure the Leader with these sealing keys, the first of which seals."""
        for name in names:
            self.key(name)
        files = [self._file(name) for name in names]
        self.leader.settings["datastore"] = {"sealing_keys": files}
        listed = ", ".join(f'"{file}"' for file in files)
        self.toml.write_text(f'[datastore]\npath = "{self.database}"\nsealing_keys = [{listed}]\n')
        return self.leader._config()

    def read(self, fn: Callable[Concatenate[Tx, P], T], *args: P.args, **kwargs: P.kwargs) -> T:
        """What a reading transaction says of the Leader's database, while it is stopped."""
        opened = open_store(self.database)
        try:
            return opened.datastore.read_sync(fn, *args, **kwargs)
        finally:
            opened.close()

    def rekey(self) -> None:
        """What ``dapd task rekey`` does, with the key that is called "new"."""
        task = aggregator_task(self.hands.task.files.leader, TaskSettings())
        opened = open_store(self.database)
        opened.datastore.run_sync(rekey_task, task, make_sealer([self.key("new")]))
        opened.datastore.run_sync(sealed.note_sealing_key, sealing_key_id(self.key("new")))
        opened.close()

    def _file(self, name: str) -> Path:
        return self.leader.directory / f"{name}.key"


@asynccontextmanager
async def full_house(path: Path) -> AsyncIterator[FullHouse]:
    """A pair that has come so far."""
    leader = {name: dict(table) for name, table in _LEADER.items()}
    helper = {"helper": {"mode": "sync"}}
    async with hand_pair(path, leader=leader, helper=helper) as (pair, http):
        task = await pair.new_task("sum:max_measurement=100")
        hands = Hands(task, http)
        await hands.upload(hands.seal([1, 2], "summed", at=SUMMED))
        await hands.upload(hands.seal([3, 4], "frozen", at=FROZEN))
        await hands.until_counted(pair.leader, "aggregate_finished", 4)
        await pair.helper.stop()
        await hands.upload(hands.seal([5, 6], "sent", at=SENT))
        await until(lambda: _has(pair.leader.context, _STORED))
        await hands.upload(hands.seal([7], "waiting", at=WAITING))
        async with trio.open_nursery() as nursery:
            nursery.start_soon(task.collect, of(FROZEN))
            await until(lambda: _has(pair.leader.context, _ASKED))
            nursery.cancel_scope.cancel()
        await pair.leader.stop()
        yield FullHouse(hands)


async def _has(context: Context, query: str) -> bool:
    def look(tx: Tx) -> list[Row]:
        return tx.all(query)

    return bool(await context.read(look))
