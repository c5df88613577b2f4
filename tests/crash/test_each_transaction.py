"""SIGKILL just before and just after the COMMIT of each transaction: D1, D2, I1, I2, I3."""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path

import pytest
import trio

from tests.crash import dying
from tests.crash.load import House, Load, assert_counted_once, open_house
from tests.processes.daemons import QUICK, DaemonProcess, assert_calm

LEADER = (
    "commits.upload_group.store",
    "commits.create_jobs.create",
    "datastore.leases.lease_due",
    "commits.leader_start.store",
    "commits.leader_start.count_send",
    "commits.leader_start.wait",
    "commits.leader_finish.finish",
    "commits.collection_create.collection_create",
    "commits.cut.advance",
    "commits.freeze.freeze",
    "datastore.collections.note_send",
    "commits.collection_finish.collection_finish",
    "datastore.collections.note_served",
    "commits.collection_delete.collection_delete",
)
HELPER = (
    "app._take_over",
    "commits.helper_store.store",
    "commits.helper_commit.commit",
    "commits.delete.delete_aggregation_job",
    "commits.aggregate_share.serve",
)


class Plan:
    """Lets the victim die at one transaction after the other, then live."""

    def __init__(self, victim: DaemonProcess, functions: Sequence[str]) -> None:
        self._victim = victim
        self._left = [(moment, name) for name in functions for moment in ("before", "after")]
        self.died: list[str] = []

    def done(self) -> bool:
        return not self._left

    async def carry_out(self) -> None:
        for moment, name in list(self._left):
            if await self._victim.start(dying.__file__, moment, name) or name == "app._take_over":
                await self._victim.ended()
            self.died.append(f"{moment} {name}")
            self._left.pop(0)
        assert await self._victim.start(), self._victim.lines[-1]


async def _survives(house: House, plan: Plan, other: DaemonProcess) -> None:
    loads = [
        Load(house.new_task("async", "time-interval"), random.Random(1), requests=2),
        Load(house.new_task("sync", "leader-selected"), random.Random(2), requests=2),
    ]
    assert await other.start(), other.lines
    try:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(plan.carry_out)
            for load in loads:
                nursery.start_soon(load.run, plan.done)
    except BaseException:
        print(f"died {plan.died}")  # noqa: T201 - the next one is the culprit
        raise
    for daemon in house.daemons:
        assert await daemon.stop() == 0
    assert_counted_once(house, *loads)
    assert_calm(house.daemons)


async def test_d1_a_leader_killed_around_each_commit_counts_exactly_once(tmp_path: Path) -> None:
    """Nothing is told before it is stored, and nothing stored is done twice."""
    with trio.fail_after(120):
        async with open_house(tmp_path) as house:
            await _survives(house, Plan(house.leader, LEADER), house.helper)


async def test_d1_a_helper_killed_around_each_commit_counts_exactly_once(tmp_path: Path) -> None:
    """The Leader's identical retry finds what the commit made, or makes it (A1, I4)."""
    with trio.fail_after(120):
        async with open_house(tmp_path) as house:
            await _survives(house, Plan(house.helper, HELPER), house.leader)
