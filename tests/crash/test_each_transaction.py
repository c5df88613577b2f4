"""SIGKILL just before and just after the COMMIT of each transaction: D1, D2, I1, I2, I3."""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path

import pytest
import trio

from tests.crash import dying
from tests.crash.load import House, Load, assert_counted_once, open_house
from tests.processes.daemons import SECONDS, DaemonProcess, assert_calm, start

LEADER = (
    "commits.uploads.store_uploads",
    "commits.create_jobs.create",
    "commits.leader_jobs.start_job",
    "commits.collections.create_collection",
    "commits.leader_jobs.finish_job",
    "commits.collections.advance_collection",
    "commits.leader_jobs.release_job",
    "commits.collections.freeze_collection",
    "commits.leader_jobs.count_send",
    "datastore.collections.note_send",
    "datastore.leases.lease_due",
    "commits.collections.finish_collection",
    "datastore.collections.note_served",
    "commits.collections.delete_collection",
)
"""In an order in which no job is leased in many crashes in a row: it would back off (E2)."""
HELPER = (
    "app._take_over",
    "commits.helper_jobs.store_job",
    "commits.helper_jobs.commit_job",
    "commits.helper_jobs.delete_aggregation_job",
    "commits.aggregate_share.serve_aggregate_share",
)


TOO_SMALL = 3000
"""Bytes of a request: for twenty reports, not for ten."""


class Plan:
    """Lets the victim die at one transaction after the other, then live."""

    def __init__(self, victim: DaemonProcess, moment: str, functions: Sequence[str]) -> None:
        self._victim = victim
        self._left: list[tuple[str, str]] = []
        for name in functions:
            if name == "commits.leader_jobs.count_send":  # what it counts again was stored before
                self._left.append(("after", "commits.leader_jobs.start_job"))
            self._left.append((moment, name))
        self.died: list[str] = []

    def done(self) -> bool:
        return not self._left

    async def carry_out(self) -> None:
        for moment, name in list(self._left):
            await self._victim.start(dying.__file__, moment, name)
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
        print(f"died at {plan.died}")  # noqa: T201 - the next one is the culprit
        raise
    for daemon in house.daemons:
        assert await daemon.stop() == 0
    assert_counted_once(house, *loads)
    assert_calm(house.daemons)


@pytest.mark.parametrize("moment", ["before", "after"])
async def test_d1_a_leader_killed_around_each_commit_counts_exactly_once(
    tmp_path: Path, moment: str
) -> None:
    """Nothing is told before it is stored, and nothing stored is done twice."""
    with trio.fail_after(SECONDS):
        async with open_house(tmp_path) as house:
            await _survives(house, Plan(house.leader, moment, LEADER), house.helper)


@pytest.mark.parametrize("moment", ["before", "after"])
async def test_d1_a_helper_killed_around_each_commit_counts_exactly_once(
    tmp_path: Path, moment: str
) -> None:
    """The Leader's identical retry finds what the commit made, or makes it (A1, I4)."""
    with trio.fail_after(SECONDS):
        async with open_house(tmp_path) as house:
            await _survives(house, Plan(house.helper, moment, HELPER), house.leader)


async def test_d5_a_leader_killed_after_halving_a_job_counts_exactly_once(tmp_path: Path) -> None:
    """The two halves are there, the whole is not: each report goes on in one of them."""
    with trio.fail_after(SECONDS):
        async with open_house(tmp_path, helper_server=f"max_body_bytes = {TOO_SMALL}") as house:
            task = house.new_task("async", "time-interval")
            await start(*house.daemons)
            first = Load(task, random.Random(1), requests=1)
            await first.run(lambda: True)  # D5: only a Helper that accepted a job halves one
            await house.leader.stop()
            plan = Plan(house.leader, "after", ["commits.leader_jobs.halve_job"])
            second = Load(task, random.Random(2), requests=1, reports=20, earlier=10)
            async with trio.open_nursery() as nursery:
                nursery.start_soon(plan.carry_out)
                nursery.start_soon(second.run, lambda: True)
            for daemon in house.daemons:
                assert await daemon.stop() == 0
            assert_counted_once(house, first, second)
            assert_calm(house.daemons)
