"""A pair that runs for three years unattended: keys rotate, reports expire, all are opened."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path

import trio

from dapd.datastore import Tx, keys
from dapd.gc.loop import GarbageCollector
from dapd.keys import rotation
from dapd.messages.common import HpkeConfig, HpkeConfigList
from dapd.protocol.keys import KeyState
from dapd.protocol.task import TaskSettings
from dapd.testing import PairTask, running_pair
from dapd.testing.pair import Aggregator
from tests.clock import PRECISION, ManualClock
from tests.pair_harness import TaskHarness, running_clock

DAY = 86_400
STEP = 11
"""Days between two uploads: no multiple or divisor of the 84 days that a key is active."""
MAX_AGE = STEP * DAY
EXPIRY_AGE = 3 * STEP * DAY
SECONDS = 180
ROWS = 20
"""The reports of an expiry age come in four steps, in up to three chunks and jobs each."""
SETTINGS = {"server": {"hpke_config_max_age": MAX_AGE}, "leader": {"max_wait": 0}}


@dataclass
class Clients:
    """Clients that encrypt to the published keys, and to those that they may still have cached."""

    task: PairTask
    harness: TaskHarness
    clock: ManualClock
    served: list[dict[str, HpkeConfig]] = field(default_factory=list)
    held_back: list[list[bytes]] = field(default_factory=list)
    sealed: int = 0

    def fetch(self) -> None:
        pair = self.task.pair
        sides = {"leader": pair.leader, "helper": pair.helper}
        self.served.append({name: published(side) for name, side in sides.items()})

    def seal(self, configs: dict[str, HpkeConfig]) -> list[bytes]:
        self.harness.client = replace(
            self.harness.client,
            leader=configs["leader"].as_tuple,
            helper=configs["helper"].as_tuple,
        )
        self.sealed += 1
        now = self.clock.now() // 1000 // PRECISION
        return self.harness.seal([1], f"report {self.sealed}", at=now)

    async def upload(self) -> int:
        """Upload three reports: one encrypted to the present keys, one to those that may leave the
        caches today, and one that such a Client has kept until the last moment. Return how many the
        Leader has accepted.
        """
        self.fetch()
        oldest = self.served[-2:][0]
        reports = self.seal(self.served[-1]) + self.seal(oldest)
        self.held_back.append(self.seal(oldest))
        if len(self.held_back) > EXPIRY_AGE // (STEP * DAY):
            reports += self.held_back.pop(0)
        assert await self.harness.upload(reports) == []
        return len(reports)


def published(side: Aggregator) -> HpkeConfig:
    (config,) = HpkeConfigList.decode(side.context.keyrings.published).configs
    return config


async def let_days_pass(sides: tuple[Aggregator, Aggregator], clock: ManualClock) -> None:
    """Let both sides rotate keys every day, and collect garbage in the end."""
    for _ in range(STEP):
        clock.advance(DAY)
        for side in sides:
            await rotation.rotate(side.context)
    for side in sides:
        await GarbageCollector(side.context).collect()


def rows(tx: Tx) -> dict[str, int]:
    """How many rows the pair has of each kind that grows with reports."""
    tables = ("report_chunks", "chunk_rows", "aggregation_jobs", "job_bodies", "batch_shares")
    found = [tx.all(f"SELECT count(*) FROM {table}")[0][0] for table in tables]  # noqa: S608
    return dict(zip(tables, found, strict=True))


async def test_f1_three_years_of_rotations_with_every_report_opened(tmp_path: Path) -> None:
    """Both open every report whose key a Client may still use, and the databases don't grow."""
    clock = running_clock()
    with trio.fail_after(SECONDS):
        async with running_pair(tmp_path, leader=SETTINGS, helper=SETTINGS, clock=clock) as pair:
            task = await pair.new_task(settings=TaskSettings(report_expiry_age=EXPIRY_AGE))
            sides = (pair.leader, pair.helper)
            clients = Clients(task, TaskHarness(task, pair.leader.context.http), clock)
            uploaded = 0
            for _ in range(3 * 365 // STEP):
                uploaded += await clients.upload()
                await clients.harness.until_counted(pair.helper, "aggregate_finished", uploaded)
                await clients.harness.until_counted(pair.leader, "aggregate_finished", uploaded)
                await let_days_pass(sides, clock)
                for side in sides:
                    counts = await side.context.read(rows)
                    assert max(counts.values()) <= ROWS, counts
            for side in sides:
                stored = await side.context.read(keys.all_keys)
                kept = [key for key in stored if key.state is not KeyState.DELETED]
                assert len(kept) <= 4
                assert len(stored) - len(kept) >= 3 * 365 // 84 - 2
            counted = await clients.harness.counters(pair.leader)
            assert counted["upload_accepted"] == counted["aggregate_finished"] == uploaded
            assert not [name for name in counted if "decrypt" in name or "outdated" in name]
            assert uploaded > 3 * 3 * 365 // STEP - 10
