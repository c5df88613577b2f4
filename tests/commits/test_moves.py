"""The tables of legal moves are what the transactions do: each move is made, and no other one.

Triggers record the state that each new row begins in, and every UPDATE of a state, while a scenario
runs the real transactions; an UPDATE that leaves the state as it is counts as a move, too.
"""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from dapd.commits import create_jobs
from dapd.commits.abandon import abandon
from dapd.commits.batch_total import batch_total
from dapd.commits.collections import (
    Failed,
    advance_collection,
    delete_collection,
    expire_collection,
    finish_collection,
    freeze_collection,
    give_up_collection,
    refuse_collection,
)
from dapd.commits.garbage import forget_answers
from dapd.commits.helper_jobs import commit_job, delete_aggregation_job, store_job
from dapd.commits.leader_jobs import (
    Halves,
    Result,
    dissolve_job,
    expire_job,
    finish_job,
    halve_job,
    release_job,
    start_job,
)
from dapd.commits.restore import quarantine
from dapd.commits.sealing_keys import ORDER, Forgetting, forget_page
from dapd.commits.uploads import OpenedUploads, store_uploads
from dapd.crypto import Keyring
from dapd.datastore import Tx, batches, chunks, collections, jobs, leader_jobs, leases
from dapd.datastore.collections import CollectionJob
from dapd.datastore.helper_jobs import JobKey
from dapd.datastore.leader_jobs import Job
from dapd.datastore.leases import Lease
from dapd.driver.collection import frozen_batch
from dapd.protocol.batches import time_bucket
from dapd.protocol.collect import Freeze
from dapd.protocol.exchange import Later
from dapd.protocol.helper import judge_init
from dapd.protocol.packing import Limits
from dapd.protocol.states import (
    CHUNK_MOVES,
    COLLECTION_MOVES,
    HELPER_JOB_MOVES,
    LEADER_JOB_MOVES,
    ChunkState,
    CollectionState,
    HelperJobState,
    LeaderJobState,
    RangeState,
)
from dapd.reports import HelperVerified, ReportError, leader_start, open_uploads
from tests.clock import NOW, TIME
from tests.database_pair import QUERY, DatabasePair, interval_query, open_databases
from tests.task_pair import ANY_TIME, leader_job, make_reports

TABLES: dict[str, Mapping[Any, frozenset[str]]] = {
    "leader": LEADER_JOB_MOVES,
    "helper": HELPER_JOB_MOVES,
    "collection": COLLECTION_MOVES,
    "chunk": CHUNK_MOVES,
}
RECORDED = {
    "aggregation_jobs": "NEW.role",
    "collection_jobs": "'collection'",
    "report_chunks": "'chunk'",
}
"""The tables whose rows move, and which machine it is."""
LIMITS = Limits(min_size=1, max_size=100, max_wait=0)
POLLING, STORED = LeaderJobState.POLLING, LeaderJobState.STORED
FINE, EARLY = bytes(1), bytes([ReportError.REPORT_TOO_EARLY])

Scenario = Callable[[DatabasePair], None]
SCENARIOS: list[tuple[Scenario, frozenset[str]]] = []
"""What is done, and the moves that it is there for."""


def legal() -> set[str]:
    return {
        f"{machine}: {old or 'new'} -> {new}"
        for machine, table in TABLES.items()
        for old, states in table.items()
        for new in states
    }


def makes(*moves: str) -> Callable[[Scenario], Scenario]:
    """The scenario makes at least these moves."""

    def add(scenario: Scenario) -> Scenario:
        SCENARIOS.append((scenario, frozenset(moves)))
        return scenario

    return add


def record(tx: Tx) -> None:
    tx.execute("CREATE TABLE moves (machine, old, new)")
    for table, machine in RECORDED.items():
        for event, old in (("INSERT", "'new'"), ("UPDATE OF state", "OLD.state")):
            tx.execute(
                f"CREATE TRIGGER {table}_{event[:6]} AFTER {event} ON {table} BEGIN "  # noqa: S608
                f"INSERT INTO moves VALUES ({machine}, {old}, NEW.state); END"
            )


def moves(tx: Tx) -> set[str]:
    rows = tx.all("SELECT machine, old, new FROM moves")
    return {f"{machine}: {old} -> {new}" for machine, old, new in rows}


# What scenarios are made of.


def upload(databases: DatabasePair, n: int = 2) -> None:
    """A chunk of ``n`` reports that waits for a job."""
    body = b"".join(make_reports(databases.pair, [1] * n))
    keyring = Keyring([databases.pair.leader_key])
    group = open_uploads(
        [(databases.leader.parameters, ANY_TIME, body)], keyring, databases.pair.sealer
    )
    pk = databases.leader.task_pk
    opened = OpenedUploads(secrets.token_bytes(16), group, [pk], {databases.leader.task_id: pk})
    databases.store.run_sync(store_uploads, opened, 100, NOW)


def create(databases: DatabasePair) -> None:
    at = databases.clock.instant()
    databases.store.run_sync(create_jobs.create, databases.leader, LIMITS, at, secrets.token_bytes)


def lease(databases: DatabasePair) -> Lease:
    """Lease the aggregation job that is due."""
    found, _ = databases.store.run_sync(
        leases.lease_due,
        databases.clock.now(),
        lambda due: [each for each in due if each.kind == "aggregation"],
    )
    return found[0]


def assigned(databases: DatabasePair, n: int = 2) -> Lease:
    """A job of one chunk."""
    upload(databases, n)
    create(databases)
    return lease(databases)


def start(databases: DatabasePair, leased: Lease, *, send: bool) -> None:
    task, held = databases.leader, databases.store.read_sync(chunks.of_job, leased.pk)
    started = leader_start(
        task.parameters, ANY_TIME, databases.pair.sealer, leased.due.id, chunks.columns_of(held)
    )
    args = leased, started.verify_inits, started.state, databases.clock.now()
    databases.store.run_sync(start_job, *args, send)


def stored(databases: DatabasePair, n: int = 2) -> Lease:
    """The same, and its request is being sent."""
    leased = assigned(databases, n)
    start(databases, leased, send=True)
    return leased


def polling(databases: DatabasePair, n: int = 2) -> Lease:
    """The same, and the Helper works on it."""
    return later(databases, stored(databases, n), POLLING)


def load(databases: DatabasePair, leased: Lease) -> Job:
    return databases.store.read_sync(leader_jobs.load, leased)


def later(databases: DatabasePair, leased: Lease, state: LeaderJobState) -> Lease:
    """The job goes on in this state, now."""
    location = "http://[::1]/job" if state is POLLING else None
    going_on = Later(location, databases.clock.now(), 0, 1)
    databases.store.run_sync(release_job, leased, load(databases, leased).state, going_on)
    return lease(databases)


def finish(databases: DatabasePair, leased: Lease, outcomes: bytes) -> None:
    result = Result(outcomes, [], answered=True, retry_at=lambda attempts: NOW + attempts)
    databases.store.run_sync(
        finish_job, leased, load(databases, leased), result, databases.clock.now()
    )


def halve(databases: DatabasePair, leased: Lease) -> None:
    ids = secrets.token_bytes(16), secrets.token_bytes(16)
    halves = Halves(ids, lambda attempts: NOW + attempts)
    databases.store.run_sync(
        halve_job, leased, load(databases, leased), halves, "refused", databases.clock.now()
    )


def give_up(databases: DatabasePair, leased: Lease) -> None:
    """As an operator."""

    def run(tx: Tx) -> None:
        row = jobs.by_pk(tx, leased.due.kind, leased.pk)
        assert row is not None
        abandon(tx, row, databases.clock.instant())

    databases.store.run_sync(run)


def forget_key(databases: DatabasePair) -> None:
    """The one sealing key is lost."""
    forgetting = Forgetting(databases.pair.sealer.key_ids[0], databases.clock.instant())
    for column in ORDER:
        after: int | None = -1
        while after is not None:
            after, _ = databases.store.run_sync(forget_page, column, after, forgetting)


def close(databases: DatabasePair, time: int = TIME) -> None:
    """The bucket is collected."""
    lo, hi = time_bucket(time), time_bucket(time + 1)
    pk = databases.leader.task_pk
    state = RangeState.COLLECTED
    databases.store.run_sync(batches.close, pk, lo, hi, state=state, collection_pk=None)


def advance(databases: DatabasePair, leased: Lease) -> object:
    at = databases.clock.instant()
    return databases.store.run_sync(advance_collection, leased, databases.leader, at, at.now)


def frozen(databases: DatabasePair) -> tuple[CollectionJob, Lease]:
    """A collection whose batch is closed."""
    databases.aggregate([1, 0, 1])
    job = databases.query(QUERY)
    leased = databases.lease(job)
    move = advance(databases, leased)
    assert isinstance(move, Freeze)
    total = databases.store.read_sync(
        batch_total, databases.leader, databases.pair.sealer, move.batch
    )
    batch = frozen_batch(
        databases.leader, databases.pair.sealer, databases.job(job), move.batch, total
    )
    at = databases.clock.instant()
    assert databases.store.run_sync(
        freeze_collection, leased, databases.leader, batch, total.extent, at
    )
    return job, leased


def ask_later(
    databases: DatabasePair, job: CollectionJob, leased: Lease, location: str | None
) -> Lease:
    following = Later(location, databases.clock.now(), 1, 1)
    assert databases.store.run_sync(collections.ask_later, leased, following)
    return databases.lease(job)


def asked(databases: DatabasePair) -> tuple[CollectionJob, Lease]:
    """A collection for which the Helper works."""
    job, leased = frozen(databases)
    return job, ask_later(databases, job, leased, "http://[::1]/share")


def delete(databases: DatabasePair, job: CollectionJob) -> None:
    assert databases.store.run_sync(
        delete_collection, databases.leader, job.id, databases.clock.instant()
    )


def helped(databases: DatabasePair) -> tuple[JobKey, bytes, HelperVerified]:
    """A request that a Helper has verified: the job's key, the body, what came out."""
    task, pair = databases.helper, databases.pair
    body = leader_job(pair, make_reports(pair, [1, 0])).body
    request = judge_init(task, body)
    digest = hashlib.sha256(body).digest()
    ids = secrets.token_bytes(16), digest, request.rows.count, b"", secrets.token_bytes(16)
    key = JobKey(task.task_pk, *ids, TIME)
    keyring = Keyring([pair.helper_key])
    verified = request.rows.verify(
        task.parameters, ANY_TIME, keyring, pair.sealer, key.id, None, bytes(key.n)
    )
    return key, body, verified


# A Leader's aggregation jobs, and their chunks.


@makes(
    "leader: new -> assigned",
    "leader: assigned -> stored",
    "leader: stored -> finished",
    "chunk: new -> waiting",
    "chunk: waiting -> assigned",
    "chunk: assigned -> decided",
)
def a_helper_that_answers_at_once(databases: DatabasePair) -> None:
    finish(databases, stored(databases), 2 * FINE)


@makes(
    "leader: stored -> stored",
    "leader: stored -> polling",
    "leader: polling -> polling",
    "leader: polling -> stored",
    "leader: polling -> finished",
)
def a_helper_that_takes_its_time_and_loses_the_job(databases: DatabasePair) -> None:
    start(databases, assigned(databases), send=False)
    leased = lease(databases)
    for state in (STORED, POLLING, POLLING, STORED, POLLING):
        leased = later(databases, leased, state)
    finish(databases, leased, 2 * FINE)


@makes("leader: assigned -> finished")
def b6_all_reports_are_rejected_before_there_is_a_request(databases: DatabasePair) -> None:
    finish(databases, assigned(databases), 2 * bytes([ReportError.VDAF_VERIFY_ERROR]))


@makes("chunk: assigned -> waiting", "chunk: assigned -> decided", "chunk: new -> waiting")
def d5_reports_that_are_too_early_come_again(databases: DatabasePair) -> None:
    finish(databases, stored(databases), 2 * EARLY)
    finish(databases, stored(databases), FINE + EARLY)


@makes("leader: assigned -> abandoned", "chunk: assigned -> waiting")
def c6_a_job_that_was_not_sent_in_time_gives_its_reports_back(databases: DatabasePair) -> None:
    leased = assigned(databases)
    databases.store.run_sync(dissolve_job, leased, load(databases, leased), databases.clock.now())


@makes("leader: stored -> abandoned", "leader: polling -> abandoned", "chunk: new -> assigned")
def d5_a_refused_job_is_halved_within_a_chunk(databases: DatabasePair) -> None:
    halve(databases, stored(databases, 3))
    halve(databases, polling(databases, 1))


@makes("chunk: assigned -> assigned")
def d5_a_refused_job_is_halved_between_chunks(databases: DatabasePair) -> None:
    upload(databases, 1)
    halve(databases, stored(databases, 1))


@makes("leader: assigned -> expired", "leader: stored -> expired", "leader: polling -> expired")
def d6_a_job_expires_at_every_stage(databases: DatabasePair) -> None:
    for job in (assigned, stored, polling):
        assert databases.store.run_sync(expire_job, job(databases).pk, databases.clock.now()) == 2


@makes("leader: assigned -> lost", "leader: stored -> lost", "leader: polling -> lost")
def d4_an_operator_gives_a_job_up(databases: DatabasePair) -> None:
    for job in (assigned, stored, polling):
        give_up(databases, job(databases))


@makes("leader: assigned -> lost", "leader: stored -> lost", "leader: polling -> lost")
def d4_a_restore_ends_unfinished_jobs(databases: DatabasePair) -> None:
    for job in (assigned, stored, polling):
        job(databases)
    databases.store.run_sync(quarantine, databases.clock.instant(), 0)


@makes("leader: assigned -> lost", "leader: stored -> lost", "chunk: waiting -> decided")
def f2_the_sealing_key_of_reports_is_lost(databases: DatabasePair) -> None:
    assigned(databases)
    stored(databases)
    upload(databases)
    forget_key(databases)


@makes("collection: frozen -> failed")
def f2_the_sealing_key_of_a_frozen_collection_is_lost(databases: DatabasePair) -> None:
    frozen(databases)
    forget_key(databases)


@makes("chunk: waiting -> decided")
def c8_the_creator_drops_reports_of_a_collected_batch(databases: DatabasePair) -> None:
    upload(databases)
    close(databases)
    create(databases)


# A Helper's aggregation jobs.


@makes("helper: new -> received", "helper: received -> finished", "helper: finished -> deleted")
def a_job_that_is_verified_later(databases: DatabasePair) -> None:
    key, body, verified = helped(databases)
    run = databases.helper_store.run_sync
    run(store_job, key, body, NOW, lease_until=NOW + 1)
    run(store_job, key, body, NOW)
    run(commit_job, key, verified, NOW, stored=True)
    assert run(delete_aggregation_job, key.task_pk, key.id)
    assert not run(delete_aggregation_job, key.task_pk, key.id)


@makes("helper: received -> deleted")
def a6_a_job_that_is_deleted_before_it_is_verified(databases: DatabasePair) -> None:
    key, body, _ = helped(databases)
    databases.helper_store.run_sync(store_job, key, body, NOW)
    assert databases.helper_store.run_sync(delete_aggregation_job, key.task_pk, key.id)


@makes("helper: new -> finished", "helper: finished -> deleted")
def a7_the_garbage_collector_forgets_an_answer(databases: DatabasePair) -> None:
    key, _, verified = helped(databases)
    run = databases.helper_store.run_sync
    run(commit_job, key, verified, NOW, stored=False)
    [(pk,)] = run(lambda tx: tx.all("SELECT job_pk FROM aggregation_jobs"))
    assert run(forget_answers, [pk]).rows == 1
    assert run(forget_answers, [pk]).rows == 0


@makes("helper: finished -> deleted", "helper: new -> received")
def d6_an_expired_job_keeps_nobody_from_making_an_identical_one(databases: DatabasePair) -> None:
    key, body, verified = helped(databases)
    databases.helper_store.run_sync(commit_job, key, verified, NOW, stored=False)
    again = replace(key, id=secrets.token_bytes(16), expired_before=TIME + 1, newest=TIME + 1)
    databases.helper_store.run_sync(store_job, again, body, NOW)


# A Leader's collection jobs.


@makes(
    "collection: new -> waiting",
    "collection: waiting -> frozen",
    "collection: frozen -> frozen",
    "collection: frozen -> polling",
    "collection: polling -> polling",
    "collection: polling -> frozen",
    "collection: polling -> finished",
    "collection: finished -> deleted",
)
def a_share_that_takes_its_time(databases: DatabasePair) -> None:
    job, leased = frozen(databases)
    for location in (None, "http://[::1]/a", "http://[::1]/b", None, "http://[::1]/c"):
        leased = ask_later(databases, job, leased, location)
    assert databases.store.run_sync(finish_collection, leased, b"result")
    delete(databases, job)
    delete(databases, job)


@makes("collection: frozen -> finished")
def a_share_at_once(databases: DatabasePair) -> None:
    _, leased = frozen(databases)
    assert databases.store.run_sync(finish_collection, leased, b"result")


@makes("collection: waiting -> failed", "collection: failed -> deleted")
def c5_a_batch_that_was_closed_for_another(databases: DatabasePair) -> None:
    job = databases.query(interval_query(TIME, 2))
    close(databases)
    assert advance(databases, databases.lease(job)) == Failed(job.id)
    delete(databases, job)


@makes("collection: frozen -> failed")
def d4_a_final_refusal_of_a_request(databases: DatabasePair) -> None:
    _, leased = frozen(databases)
    assert databases.store.run_sync(
        refuse_collection, leased, databases.leader, "batchMismatch", ""
    )


@makes("collection: polling -> failed")
def d4_a_final_refusal_of_a_poll(databases: DatabasePair) -> None:
    _, leased = asked(databases)
    assert databases.store.run_sync(
        refuse_collection, leased, databases.leader, "batchMismatch", ""
    )


@makes("collection: frozen -> failed", "collection: new -> frozen", "collection: failed -> deleted")
def d4_a_collection_is_given_up_and_an_identical_one_goes_on(databases: DatabasePair) -> None:
    job, leased = frozen(databases)
    assert databases.store.run_sync(collections.note_send, leased)
    failed = "unrecognizedTask", ""
    at = databases.clock.instant()
    assert databases.store.run_sync(give_up_collection, leased, databases.leader, failed, at)
    delete(databases, job)
    assert databases.query(QUERY).state == "frozen"


@makes("collection: waiting -> deleted")
def a6_a_waiting_collection_is_deleted(databases: DatabasePair) -> None:
    delete(databases, databases.query(QUERY))


@makes("collection: frozen -> deleted")
def a6_a_frozen_collection_is_given_up_by_an_operator(databases: DatabasePair) -> None:
    _, leased = frozen(databases)
    give_up(databases, leased)


@makes("collection: polling -> deleted")
def a6_a_polled_collection_is_deleted(databases: DatabasePair) -> None:
    delete(databases, asked(databases)[0])


@makes("collection: frozen -> failed")
def d6_a_frozen_collection_expires(databases: DatabasePair) -> None:
    job, _ = frozen(databases)
    pk = databases.leader.task_pk
    assert databases.store.run_sync(expire_collection, pk, job.pk, TIME, NOW) is None
    assert databases.store.run_sync(expire_collection, pk, job.pk, TIME + 1, NOW) == job.id


@makes("collection: polling -> failed")
def d6_a_polled_collection_expires(databases: DatabasePair) -> None:
    job, _ = asked(databases)
    pk = databases.leader.task_pk
    assert databases.store.run_sync(expire_collection, pk, job.pk, TIME + 1, NOW) == job.id


@pytest.mark.parametrize(
    ("scenario", "expected"), SCENARIOS, ids=[scenario.__name__ for scenario, _ in SCENARIOS]
)
async def test_d1_the_transactions_make_legal_moves_alone(
    tmp_path: Path, scenario: Scenario, expected: frozenset[str]
) -> None:
    """D1: those that the scenario is there for, and none that its table lacks."""
    async with open_databases(tmp_path) as databases:
        stores = databases.store, databases.helper_store
        for store in stores:
            store.run_sync(record)
        scenario(databases)
        made = {move for store in stores for move in store.read_sync(moves)}
    assert made - legal() == set()
    assert expected - made == set()


def test_every_legal_move_is_made_by_a_scenario() -> None:
    """A move that no transaction makes is none."""
    made = {move for _, expected in SCENARIOS for move in expected}
    assert made == legal()


def test_every_state_has_its_moves() -> None:
    """What has ended has none but to its deletion; a row begins in the states under ``None``."""
    enums = (LeaderJobState, HelperJobState, CollectionState, ChunkState)
    for enum, table in zip(enums, TABLES.values(), strict=True):
        assert set(table) == {None, *enum}


async def test_a_job_is_not_moved_against_the_table(tmp_path: Path) -> None:
    """Whatever an answer was taken for: what was never sent can't be polled."""
    async with open_databases(tmp_path) as databases:
        leased = assigned(databases)
        with pytest.raises(ValueError, match="can't go from assigned to polling"):
            later(databases, leased, POLLING)
        assert load(databases, leased).state is LeaderJobState.ASSIGNED
