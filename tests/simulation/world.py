"""Run a plan: build the deployment, let the events happen, then make everything right and judge."""

from __future__ import annotations

import random
import secrets
import tempfile
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx2
import trio

from dapd.commits import hpke_keys
from dapd.commits.tasks import add_task, add_token, remove_token, set_task_state, use_token
from dapd.config.keyfiles import read_sealing_keys
from dapd.crypto import Sealer, hash_token, make_sealer
from dapd.protocol.keys import SUITES
from dapd.protocol.task import TaskSettings, TaskState
from dapd.taskfile import TaskDraft, aggregator_task, new_task, parse_vdaf_spec
from tests.simulation import determinism, verdict
from tests.simulation.clock import WorldClock
from tests.simulation.machine import Machine
from tests.simulation.network import Network
from tests.simulation.parties import VDAF, Parties
from tests.simulation.plan import (
    EXPIRY,
    HELPER_PORT,
    LEADER_PORT,
    PRECISION,
    SECOND_HELPER_PORT,
    SIDES,
    Event,
    Noise,
    Plan,
    helper_port,
)
from tests.simulation.trace import Trace


@dataclass
class World:
    """A running deployment."""

    plan: Plan
    clock: WorldClock
    network: Network
    machines: dict[str, Machine]
    tasks: list[Parties]
    trace: Trace

    @property
    def leader(self) -> Machine:
        return self.machines["leader"]

    @property
    def helper(self) -> Machine:
        return self.machines["helper"]

    @property
    def restored(self) -> bool:
        """Whether a database was replaced by an older copy."""
        return any(machine.restored for machine in self.machines.values())

    def has_expired(self, time: int) -> bool:
        """Return whether reports of this time, in time precisions, have expired by now."""
        return (time + 1) * PRECISION + EXPIRY <= self.clock.now()

    async def play(self) -> None:
        """Let every event of the plan happen at its time."""
        async with trio.open_nursery() as nursery:
            for event in self.plan.events:
                nursery.start_soon(self._happen_in_time, event)

    async def _happen_in_time(self, event: Event) -> None:
        await trio.sleep_until(event.at)
        self.trace.note("event", **{name: getattr(event, name) for name in event.__struct_fields__})
        await getattr(self, f"_{event.do}")(event)

    def _machine(self, event: Event) -> Machine:
        return self.machines[event.side]

    async def _upload(self, event: Event) -> None:
        await self.tasks[event.task].upload(event.n, event.seconds)

    async def _collect(self, event: Event) -> None:
        task = self.tasks[event.task]
        if not task.by_time:
            await task.collect(None)
            return
        width = event.n
        last = int(self.clock.now() - event.seconds) // PRECISION
        await task.collect((last // width * width, width))

    async def _kill(self, event: Event) -> None:
        await self._interrupt(event, Machine.kill)

    async def _stop(self, event: Event) -> None:
        await self._interrupt(event, Machine.stop)

    async def _interrupt(self, event: Event, end: Callable[[Machine], Awaitable[None]]) -> None:
        machine = self._machine(event)
        async with machine.operator:
            await end(machine)
            await trio.sleep(event.seconds)
            await machine.start()

    async def _silence(self, event: Event) -> None:
        await self._hinder(event, self.network.silent)

    async def _lose_answers(self, event: Event) -> None:
        await self._hinder(event, self.network.losing_answers)

    async def _slow_down(self, event: Event) -> None:
        await self._hinder(event, self.network.slow)

    async def _hinder(self, event: Event, ports: Counter[int]) -> None:
        port = helper_port(self.plan.tasks[event.task].second_peer)
        ports[port] += 1
        await trio.sleep(event.seconds)
        ports[port] -= 1

    async def _forge(self, event: Event) -> None:
        await self.tasks[event.task].upload(event.n, event.seconds, forged=True)

    async def _set_clock(self, event: Event) -> None:
        self._machine(event).clock.set(event.seconds)

    async def _outage(self, event: Event) -> None:
        async with self.leader.operator, self.helper.operator:
            for machine in self.machines.values():
                await machine.kill()
            self.clock.skipped += event.seconds
            for machine in self.machines.values():
                await machine.start()
                machine.accept_clock()

    async def _disk_full(self, event: Event) -> None:
        machine = self._machine(event)
        machine.set_full(True)
        await trio.sleep(event.seconds)
        machine.set_full(False)

    async def _back_up(self, event: Event) -> None:
        self._machine(event).back_up()

    async def _restore(self, event: Event) -> None:
        machine = self._machine(event)
        async with machine.operator:
            await machine.kill()
            machine.restore()
            await trio.sleep(event.seconds)
            await machine.start()
            machine.quarantined_ahead |= machine.clock.offset > 0

    async def _new_hpke_key(self, event: Event) -> None:
        machine = self._machine(event)
        suite = next(iter(SUITES.values()))
        machine.command(
            lambda tx: hpke_keys.add(
                tx, _sealer(machine), suite, machine.clock.now(), machine.config(), active=True
            )
        )

    async def _new_sealing_key(self, event: Event) -> None:
        self._machine(event).add_sealing_key()
        await self._stop(event)

    async def _drain_task(self, event: Event) -> None:
        await self._set_state(event, TaskState.DRAINING)

    async def _disable_task(self, event: Event) -> None:
        await self._set_state(event, TaskState.DISABLED)

    async def _set_state(self, event: Event, state: TaskState) -> None:
        machine, task_id = self._machine(event), self.tasks[event.task].task_id
        machine.command(set_task_state, task_id, state)
        await trio.sleep(event.seconds)
        machine.command(set_task_state, task_id, TaskState.ACTIVE)

    async def _new_token(self, event: Event) -> None:
        task = self.tasks[event.task]
        async with task.operator:
            token = secrets.token_urlsafe(24)
            self.helper.command(add_token, task.task_id, hash_token(token))
            await trio.sleep(11)
            self.leader.command(use_token, task.task_id, token, _sealer(self.leader))
            await trio.sleep(event.seconds)
            self.helper.command(remove_token, task.task_id)

    async def make_right(self) -> None:
        """End every fault, so that all that was accepted can come to its end."""
        self.network.noise = Noise()
        self.network.silent.clear()
        self.network.losing_answers.clear()
        self.network.slow.clear()
        for machine in self.machines.values():
            machine.clock.set(0.0)
            machine.set_full(False)
        for machine in self.machines.values():
            await machine.start()
            machine.accept_clock()
            for task in self.tasks:  # a restore may have brought back another state
                machine.command(set_task_state, task.task_id, TaskState.ACTIVE)
        self.trace.note("made_right")


async def run(plan: Plan, trace: Trace) -> None:
    """Run the plan to its end and judge it. Raises ``AssertionError``, or what broke."""
    with tempfile.TemporaryDirectory(prefix="dapd-simulation-", dir=_directory()) as directory:
        async with _world(plan, Path(directory), trace) as world:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(verdict.watch, world)
                await world.play()
                await world.make_right()
                await verdict.drain(world)
                nursery.cancel_scope.cancel()
            verdict.judge(world)
            await verdict.expire(world)


def simulate(plan: Plan, trace: Trace) -> None:
    """Run the plan in a Trio run of its own."""
    with determinism.seeded(plan.seed):
        trace.listen_to_logs()
        trio.run(run, plan, trace, clock=determinism.jumping_clock())


@asynccontextmanager
async def _world(plan: Plan, directory: Path, trace: Trace) -> AsyncIterator[World]:
    chance = random.Random(f"network {plan.seed}")
    network = Network(chance, plan.noise, trace)
    httpx2._client.AsyncHTTPTransport = network.transport  # type: ignore[attr-defined,assignment]
    clock = WorldClock()
    async with trio.open_nursery() as nursery:
        machines = {
            side: Machine(
                side,
                directory / side,
                dict(plan.settings),
                clock,
                network,
                random.Random(f"{side} {plan.seed}"),
                trace,
                nursery,
            )
            for side in SIDES
        }
        network.routes = {
            LEADER_PORT: machines["leader"],
            HELPER_PORT: machines["helper"],
            SECOND_HELPER_PORT: machines["helper"],
        }
        for machine in machines.values():
            await machine.start()
        world = World(plan, clock, network, machines, [], trace)
        for number in range(len(plan.tasks)):
            world.tasks.append(_new_task(world, number))
        await trio.sleep(11)  # both daemons notice their new tasks
        yield world
        for machine in machines.values():
            await machine.stop()
    for machine in machines.values():
        verdict.check_database(machine)


def _new_task(world: World, number: int) -> Parties:
    plan = world.plan.tasks[number]
    files = new_task(
        TaskDraft(
            vdaf=parse_vdaf_spec(VDAF),
            leader_aggregator_endpoint=f"http://127.0.0.1:{LEADER_PORT}/",
            helper_aggregator_endpoint=f"http://127.0.0.1:{helper_port(plan.second_peer)}/",
            batch_mode=plan.batch_mode,
            min_batch_size=plan.min_batch_size,
            time_precision=PRECISION,
        ),
        allow_tiny_batches=True,
    )
    for side, file in (("leader", files.leader), ("helper", files.helper)):
        machine = world.machines[side]
        settings = TaskSettings(
            helper_mode=plan.helper_mode if side == "helper" else None,
            batch_target_size=plan.batch_target_size if side == "leader" else None,
            report_expiry_age=EXPIRY,
        )
        machine.command(add_task, aggregator_task(file, settings), _sealer(machine))
    restores = any(event.do == "restore" for event in world.plan.events)
    forgets_deletes = restores or "proxy" in world.plan.noise.faults
    return Parties(number, plan, files, world.clock, world.trace, forgets_deletes)


def _sealer(machine: Machine) -> Sealer:
    return make_sealer(read_sealing_keys(machine.config()))


def _directory() -> str | None:
    """A directory in memory, if there is one: nothing here depends on a disk."""
    return "/dev/shm" if Path("/dev/shm").is_dir() else None
