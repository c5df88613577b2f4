"""What must hold while a plan runs, after it, and once everything has expired."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

import trio

from dapd.datastore import Tx, counters, tasks, uncollected
from dapd.datastore.sqlite import Row
from dapd.messages.common import b64url_encode
from dapd.protocol.helper import judge_init
from tests.database_dump import findings
from tests.gc.row_counts import row_counts
from tests.simulation.parties import Fate, Parties
from tests.simulation.plan import EXPIRY, PRECISION, helper_port

if TYPE_CHECKING:
    from tests.simulation.machine import Machine
    from tests.simulation.world import World

_LOOK_EVERY = 15.0
_LONGEST_DUE_MS = 180_000
_LONGEST_SUSPECT_MS = 50_000
_EACH_SUSPECT_MS = 25_000
_DRAIN_SECONDS = 1800.0
_PATIENCE = 15.0
_LEGAL = {"", "invalidBatchSize", "batchOverlap", "batchInvalid", "unrecognizedTask"}
_AFTER_A_RESTORE = {"batchMismatch"}

_Q_STARVING = """
SELECT aggregation_jobs.state, run_at, crashes FROM aggregation_jobs JOIN tasks USING (task_pk)
WHERE aggregation_jobs.state IN ('assigned', 'received') AND lease_token IS NULL
  AND run_at < :before AND tasks.state = 'active'"""

_Q_SUSPECTS = """
SELECT task_id, aggregation_jobs.state, run_at, crashes FROM aggregation_jobs
JOIN tasks USING (task_pk)
WHERE aggregation_jobs.state IN ('assigned', 'received', 'stored', 'polling')
  AND lease_token IS NULL AND run_at < :before AND crashes > 1 AND tasks.state = 'active'"""

_Q_LEFT_ALONE = """
SELECT chunk.task_pk, bucket, n, run_at FROM report_chunks AS chunk JOIN tasks USING (task_pk)
WHERE chunk.state = 'waiting' AND run_at < :before AND tasks.state = 'active'
  AND NOT EXISTS (SELECT 1 FROM collected WHERE collected.task_pk = chunk.task_pk
    AND lo <= chunk.bucket AND chunk.bucket < hi)
  AND NOT EXISTS (SELECT 1 FROM collection_jobs AS asked WHERE asked.task_pk = chunk.task_pk
    AND asked.state = 'waiting' AND asked.cut IS NOT NULL
    AND (asked.hi = x'' OR (asked.lo <= chunk.bucket AND chunk.bucket < asked.hi)))"""

_Q_COLLECTING = """
SELECT job.state, job.lo, job.hi FROM collection_jobs AS job JOIN tasks USING (task_pk)
WHERE task_id = :task_id AND (job.state IN ('frozen', 'polling', 'finished')
  OR job.state = 'waiting' AND :enough <= (SELECT sum(n) FROM batch_shares AS share
    WHERE share.task_pk = job.task_pk AND bucket >= lo AND bucket < hi))"""

_Q_READY_BATCHES = """
SELECT bucket, sum(n) FROM batch_shares JOIN tasks USING (task_pk)
WHERE task_id = :task_id AND NOT EXISTS (SELECT 1 FROM collected
  WHERE collected.task_pk = batch_shares.task_pk AND lo = bucket)
GROUP BY bucket HAVING sum(n) >= :enough"""
_Q_WAITING_FOR_A_BATCH = "SELECT 1 FROM collection_jobs WHERE state = 'waiting' AND lo = x''"


async def watch(world: World) -> None:
    """Look again and again whether a job that could compute is left waiting (rule E2)."""
    while True:
        await trio.sleep(_LOOK_EVERY)
        for machine in world.machines.values():
            _look_for_starving(machine)
        _look_for_suspects(world)
        _look_for_contradictions(world)
        assert not world.trace.failures, world.trace.failures[0]


def _look_for_starving(machine: Machine) -> None:
    if not machine.was_quiet_for(_LONGEST_DUE_MS):
        return
    before = machine.clock.now() - _LONGEST_DUE_MS
    starving = machine.look(
        lambda tx: [
            *tx.all(_Q_STARVING, before=before),
            *tx.all(_Q_LEFT_ALONE, before=before + _LONGEST_DUE_MS // 2),
        ]
    )
    assert not starving, f"{machine.name}: due for minutes, and not stepped: {starving}"


def _look_for_suspects(world: World) -> None:
    """A job that may have ended the process twice runs soon, whatever other peers do (rule E2)."""
    machine = world.leader
    if not machine.was_quiet_for(_LONGEST_SUSPECT_MS):
        return
    before = machine.clock.now() - _LONGEST_SUSPECT_MS
    suspects = machine.look(lambda tx: tx.all(_Q_SUSPECTS, before=before))
    for task_id, state, run_at, crashes in suspects:
        if run_at > before - _EACH_SUSPECT_MS * len(suspects):  # they run one after the other
            continue
        task = next(each for each in world.tasks if each.task_id == task_id)
        port = helper_port(task.plan.second_peer)
        hindered = world.network.silent[port] or world.network.slow[port]
        assert hindered, f"{state} and suspect ({crashes}) since {run_at}"


def _look_for_contradictions(world: World) -> None:
    """A job's bytes have one answer until the newest of its reports expires (rule A1)."""
    if world.restored:
        return
    for path, body, at in world.network.answers.contradictions:
        task = next(each for each in world.tasks if b64url_encode(each.task_id) in path)
        request = judge_init(world.helper.look(partial(_task, parties=task)), body)
        expired = world.has_expired(request.rows.time_max)
        assert expired, f"task {task.number}: a job answered at {at} got another answer"
    world.network.answers.contradictions.clear()


async def drain(world: World) -> None:
    """Collect until nothing accepted is left. Raises ``AssertionError`` if that takes too long."""
    left: list[str] = []
    with trio.move_on_after(_DRAIN_SECONDS):
        while True:
            for task in world.tasks:
                await _collect_all(world, task)
            left = [line for task in world.tasks for line in _left(world, task)]
            if not left:
                return
            await trio.sleep(20)
    raise AssertionError(f"never ends: {left}")


async def _collect_all(world: World, task: Parties) -> None:
    if not task.by_time:
        while _left(world, task) and await task.collect(None, _PATIENCE) is None:
            pass
        return
    ledger = task.ledger
    for interval, result in list(ledger.asked.items()):
        if result is None:
            await task.collect(interval, _PATIENCE)
    for time in sorted(ledger.missing_times):
        if not world.has_expired(time) and time * PRECISION <= world.clock.now() + EXPIRY:
            await task.collect((time, 1), _PATIENCE)


def _left(world: World, task: Parties) -> list[str]:
    """What of a task is not at its end yet."""
    found = []
    for machine in world.machines.values():
        left = machine.look(partial(_uncollected, machine=machine, parties=task))
        collecting = machine.look(lambda tx: _collecting(tx, task))
        ready = machine.look(lambda tx: _ready_batches(tx, task))
        if world.restored:  # its batches stay closed until the operators have compared them
            ready, collecting = [], []
        if left.waiting or left.jobs or collecting or (machine is world.leader and ready):
            found.append(f"{machine.name}, task {task.number}: {left}, {collecting}, {ready}")
    return found


def _collecting(tx: Tx, parties: Parties) -> list[Row]:
    """The collections that have to go on; one may wait for ever for enough reports."""
    enough = parties.plan.min_batch_size
    return [
        (state, lo, hi)
        for state, lo, hi in tx.all(_Q_COLLECTING, task_id=parties.task_id, enough=enough)
        if state != "finished" or not _was_fetched(parties, lo, hi)
    ]


def _was_fetched(parties: Parties, lo: bytes, hi: bytes) -> bool:
    """Whether the Collector has this result. It deletes the job of a leader-selected batch."""
    if not parties.by_time:
        return False
    first = int.from_bytes(lo)
    asked = parties.ledger.asked
    return asked.get((first, int.from_bytes(hi) - first), frozenset()) is not None


def _ready_batches(tx: Tx, parties: Parties) -> list[Row]:
    """The leader-selected batches that the next query could take."""
    if parties.by_time:
        return []
    enough = parties.plan.min_batch_size
    return tx.all(_Q_READY_BATCHES, task_id=parties.task_id, enough=enough)


def _uncollected(tx: Tx, machine: Machine, parties: Parties) -> uncollected.Uncollected:
    task = _task(tx, parties)
    return uncollected.of_task(tx, task.task_pk, task.expired_before_at(machine.context.instant()))


def _task(tx: Tx, parties: Parties) -> Any:
    stored = tasks.find(tx, parties.task_id)
    assert stored is not None
    return stored.public()


def judge(world: World) -> None:
    """Compare results, counters and the clients' knowledge of every task."""
    for task in world.tasks:
        _judge_task(world, task)


def _judge_task(world: World, task: Parties) -> None:
    ledger, name = task.ledger, f"task {task.number}"
    legal = _LEGAL | (_AFTER_A_RESTORE if world.restored else set())
    assert set(task.refused) <= legal, f"{name}: collections failed with {task.refused}"
    accepted, unknown = ledger.of(Fate.ACCEPTED), ledger.of(Fate.UNKNOWN)
    leader, helper = (_numbers(machine, task) for machine in (world.leader, world.helper))
    told = f"{name}: leader {leader}, helper {helper}, {len(accepted)} accepted, "
    told += f"{len(unknown)} unknown, {len(ledger.collected)} collected"
    if world.restored:
        return
    uploads = leader["upload_accepted"]
    assert len(accepted) <= uploads <= len(accepted) + len(unknown), told
    assert leader["aggregate_finished"] + leader["out"] == uploads, f"undecided; {told}"
    out, left, dropped = leader["out"], leader["left"], leader["contribution_dropped"]
    fresh = {place for place in accepted if not world.has_expired(ledger.times[place])}
    missing = fresh - ledger.collected
    assert len(missing) <= out + left + dropped, f"{sorted(missing)} are missing; {told}"
    if world.clock.skipped or leader["collection_expired"]:
        return  # what expired before its result was fetched is counted nowhere
    assert len(ledger.collected) + left + dropped == leader["aggregate_finished"], told
    assert helper["aggregate_finished"] == leader["aggregate_finished"], told


def _numbers(machine: Machine, task: Parties) -> dict[str, int]:
    def read(tx: Tx) -> dict[str, int]:
        stored = _task(tx, task)
        found = counters.of_task(tx, stored.task_pk)
        left = uncollected.of_task(tx, stored.task_pk, 0)
        return {
            "upload_accepted": 0,
            "aggregate_finished": 0,
            "contribution_dropped": 0,
            "collection_expired": 0,
            **found,
            "out": _left_out(found),
            "left": left.aggregated,
        }

    numbers: dict[str, int] = machine.look(read)
    return numbers


def _left_out(counters: Mapping[str, int]) -> int:
    """How many accepted reports a side has counted as left out of all aggregates."""
    return sum(
        n
        for name, n in counters.items()
        if name.startswith("aggregate_") and name != "aggregate_finished"
    )


async def expire(world: World) -> None:
    """Let everything expire: nothing may stay behind (rule D6), but a query for the next batch."""
    round_of_gc = world.plan.settings["gc"]["interval"] + 5
    for _ in range(8):
        world.clock.skipped += EXPIRY
        await trio.sleep(round_of_gc)
        left = {name: _rows(machine) for name, machine in world.machines.items()}
        if not any(left.values()):
            return
    raise AssertionError(f"left behind: {left}")


def _rows(machine: Machine) -> dict[str, int]:
    found = row_counts(machine.context.datastore)
    waiting = machine.look(lambda tx: tx.all(_Q_WAITING_FOR_A_BATCH))
    if found.get("collection_jobs") == len(waiting):
        del found["collection_jobs"]
    if machine.quarantined_ahead:
        found.pop("collected", None)
    return found


def check_database(machine: Machine) -> None:
    """``dapd datastore check`` must find nothing."""
    found = findings(machine.database)
    assert found == [], f"{machine.name}: {found}"
