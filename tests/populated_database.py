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
from tests.clock import TIME
from tests.contexts import open_store
from tests.pair_harness import TaskHarness, open_pair, query_at, until

P = ParamSpec("P")
T = TypeVar("T")

SUMMED, FROZEN, SENT, WAITING = TIME - 3, TIME - 2, TIME - 1, TIME
_LEADER = {"leader": {"min_job_size": 2, "max_wait": 3600, "retry_min": 0.05, "retry_max": 0.2}}
_STORED = "SELECT 1 FROM aggregation_jobs WHERE state = 'stored'"
_ASKED = "SELECT 1 FROM collection_jobs WHERE state = 'frozen' AND sends > 0"


@dataclass
class PopulatedDatabase:
    """The Leader's database; both Aggregators are stopped."""

    harness: TaskHarness

    @property
    def leader(self) -> Aggregator:
        return self.harness.pair.leader

    @property
    def database(self) -> Path:
        return self.leader.directory / "dapd.sqlite"

    @property
    def toml(self) -> Path:
        """The Leader's configuration as a file, for commands."""
        return self.leader.directory / "dapd.toml"

    def key(self, name: str) -> bytes:
        """A sealing key of the Leader, made if need be; all data was sealed with "sealing"."""
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
        return self.leader.config()

    def read(self, fn: Callable[Concatenate[Tx, P], T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Run a read transaction on the database while no daemon has it open."""
        opened = open_store(self.database)
        try:
            return opened.datastore.read_sync(fn, *args, **kwargs)
        finally:
            opened.close()

    def rekey(self) -> None:
        """Do what ``dapd task rekey`` does, with the key that is called "new"."""
        task = aggregator_task(self.harness.task.files.leader, TaskSettings())
        opened = open_store(self.database)
        opened.datastore.run_sync(rekey_task, task, make_sealer([self.key("new")]))
        opened.datastore.run_sync(sealed.note_sealing_key, sealing_key_id(self.key("new")))
        opened.close()

    def _file(self, name: str) -> Path:
        return self.leader.directory / f"{name}.key"


@asynccontextmanager
async def populated_database(path: Path) -> AsyncIterator[PopulatedDatabase]:
    """The database of a pair that has come so far."""
    leader = {name: dict(table) for name, table in _LEADER.items()}
    helper = {"helper": {"mode": "sync"}}
    async with open_pair(path, leader=leader, helper=helper) as (pair, http):
        task = await pair.new_task("sum:max_measurement=100")
        harness = TaskHarness(task, http)
        await harness.upload(harness.seal([1, 2], "summed", at=SUMMED))
        await harness.upload(harness.seal([3, 4], "frozen", at=FROZEN))
        await harness.until_counted(pair.leader, "aggregate_finished", 4)
        await pair.helper.stop()
        await harness.upload(harness.seal([5, 6], "sent", at=SENT))
        await until(lambda: _has(pair.leader.context, _STORED))
        await harness.upload(harness.seal([7], "waiting", at=WAITING))
        async with trio.open_nursery() as nursery:
            nursery.start_soon(task.collect, query_at(FROZEN))
            await until(lambda: _has(pair.leader.context, _ASKED))
            nursery.cancel_scope.cancel()
        await pair.leader.stop()
        yield PopulatedDatabase(harness)


async def _has(context: Context, query: str) -> bool:
    def look(tx: Tx) -> list[Row]:
        return tx.all(query)

    return bool(await context.read(look))
