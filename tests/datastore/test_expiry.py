"""What tells the garbage collector whether to look at a task: each kind of row, at its limit."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from dapd.datastore import Datastore, Tx, batches, expiry
from dapd.datastore.expiry import START
from dapd.protocol.batches import time_bucket
from dapd.protocol.task import Mark
from tests.contexts import open_store
from tests.effort import counting

BEFORE, MS, FORGOTTEN = 1000, 50_000, 500
LIMITS = Mark(BEFORE, MS), time_bucket(BEFORE), FORGOTTEN
TASK = """
INSERT INTO tasks (task_pk, task_id, role, dap_version, configuration, verification_key_id,
  verify_key, collector_hpke_config, inbound_token_hashes)
VALUES (:task_pk, :task_id, 'leader', 'dap-18', x'', 0, x'', x'', x'')"""
CHUNK = """
INSERT INTO report_chunks (task_pk, seq, bucket, n, time_min, time_max, state, run_at, ids)
VALUES (1, 1, x'', 1, 0, :at, '{}', 0, x'')"""
JOB = """
INSERT INTO aggregation_jobs (id, task_pk, role, state, n, bucket, run_at, newest, created_at,
  buckets)
VALUES (randomblob(16), :task_pk, 'helper', :state, 1, x'', 0, :at, 0, x'')"""
SHARE = """
INSERT INTO batch_shares (task_pk, bucket, job_id, n, checksum, time_min, time_max, share)
VALUES (:task_pk, :bucket, randomblob(16), 1, x'', 0, :at, x'')"""
RANGE = "INSERT INTO collected (task_pk, lo, hi, state) VALUES (1, :lo, :hi, 'collected')"
COLLECTION = """
INSERT INTO collection_jobs (id, task_pk, state, lo, hi, run_at, request, time_max, created_at,
  leader_share)
VALUES (randomblob(16), 1, :state, x'', x'', 0, x'', :at, :made,
  CASE WHEN :state IN ('frozen', 'polling') THEN x'00' END)"""
EXPIRED_ID = """
INSERT INTO collected (task_pk, lo, hi, state, newest)
VALUES (1, randomblob(32), zeroblob(33), 'expired', :at)"""
SHARE_JOB = """
INSERT INTO aggregate_share_jobs (id, task_pk, created_at) VALUES (x'', 1, :made)"""
ENDED = ("finished", "failed", "deleted")


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Datastore]:
    opened = open_store(tmp_path / "dapd.sqlite")

    def insert(tx: Tx) -> None:
        for task_pk in (1, 2):
            tx.execute(TASK, task_pk=task_pk, task_id=bytes([task_pk]))

    opened.datastore.run_sync(insert)
    yield opened.datastore
    opened.close()


def finds(store: Datastore, sql: str, **parameters: object) -> bool:
    """Whether a task with this row has expired rows; the other task never has."""
    store.run_sync(lambda tx: tx.execute(sql, **parameters))
    assert not store.read_sync(expiry.has_expired, 2, *LIMITS)
    return store.read_sync(expiry.has_expired, 1, *LIMITS)


@pytest.mark.parametrize("expired", [True, False])
@pytest.mark.parametrize(
    ("sql", "more"),
    [
        (CHUNK.format("waiting"), {}),
        (CHUNK.format("decided"), {}),
        (JOB, {"task_pk": 1, "state": "finished"}),
        (JOB, {"task_pk": 1, "state": "deleted"}),
        (JOB, {"task_pk": 1, "state": "received"}),
        (SHARE, {"task_pk": 1, "bucket": bytes(32)}),
        (COLLECTION, {"state": "frozen", "made": MS}),
        (COLLECTION, {"state": "polling", "made": MS}),
        *((COLLECTION, {"state": state, "made": MS - 1}) for state in ENDED),
    ],
)
def test_d6_a_row_is_found_once_its_newest_report_has_expired(
    store: Datastore, sql: str, more: dict[str, object], expired: bool
) -> None:
    """That is so for every kind of row that goes by the time of reports."""
    assert finds(store, sql, at=BEFORE - 1 if expired else BEFORE, **more) is expired


@pytest.mark.parametrize("state", ENDED)
@pytest.mark.parametrize("expired", [True, False])
def test_d6_an_ended_collection_is_found_once_its_making_has_expired(
    store: Datastore, state: str, expired: bool
) -> None:
    """It may have ended without reports."""
    made = MS - 1 if expired else MS
    assert finds(store, COLLECTION, state=state, at=None, made=made) is expired


@pytest.mark.parametrize("expired", [True, False])
def test_d6_what_is_no_reports_is_found_by_its_own_limit(store: Datastore, expired: bool) -> None:
    """A Helper's aggregate share goes by its making, a closed interval by its end."""
    made = MS - 1 if expired else MS
    end = time_bucket(BEFORE if expired else BEFORE + 1)
    assert finds(store, RANGE, lo=time_bucket(0), hi=end) is expired
    store.run_sync(lambda tx: tx.execute("DELETE FROM collected"))
    assert finds(store, SHARE_JOB, made=made) is expired


@pytest.mark.parametrize("expired", [True, False])
def test_c6_the_id_of_an_expired_batch_is_found_an_age_later(
    store: Datastore, expired: bool
) -> None:
    """Until then late jobs of its Leader may come."""
    assert finds(store, EXPIRED_ID, at=FORGOTTEN - 1 if expired else FORGOTTEN) is expired


def test_what_waits_for_others_is_not_found(store: Datastore) -> None:
    """A chunk in a job ends with that job; a collection that waits keeps nothing from expiring."""
    assert not finds(store, CHUNK.format("assigned"), at=0)
    assert not finds(store, COLLECTION, state="waiting", at=None, made=0)


def test_a7_answers_are_looked_at_only_beside_a_collected_batch(store: Datastore) -> None:
    """Without one, no answer can have all its buckets collected."""
    store.run_sync(lambda tx: tx.execute(JOB, task_pk=1, state="finished", at=BEFORE))
    assert not store.read_sync(expiry.has_answered, 1)
    store.run_sync(lambda tx: tx.execute(RANGE, lo=b"a", hi=b"b"))
    assert store.read_sync(expiry.has_answered, 1)
    store.run_sync(lambda tx: tx.execute("UPDATE aggregation_jobs SET state = 'deleted'"))
    assert not store.read_sync(expiry.has_answered, 1)


def test_c6_a_batch_has_expired_with_its_newest_report(store: Datastore) -> None:
    """Pages end anywhere, and each batch is found; another task's are not."""
    old = [bytes([1, number % 256, number // 256]) for number in range(700)]
    fed = [bytes([2, number % 256, number // 256]) for number in range(300)]

    def fill(tx: Tx) -> None:
        for number, batch_id in enumerate([*old, *fed]):
            for at in (number % 7, number % 5):
                tx.execute(SHARE, task_pk=1, bucket=batch_id, at=at)
        for batch_id in fed:
            tx.execute(SHARE, task_pk=1, bucket=batch_id, at=BEFORE)
        tx.execute(SHARE, task_pk=2, bucket=b"another's", at=0)

    store.run_sync(fill)
    found: set[bytes] = set()
    after: expiry.Found | None = START
    while after is not None:
        batch_ids, after = store.read_sync(batches.expired, 1, BEFORE, after)
        found |= set(batch_ids)
    assert found == set(old)


def test_c6_batches_that_live_cost_nothing(store: Datastore) -> None:
    """SQLite does as much beside 200 as beside 10."""
    efforts = []
    store.run_sync(lambda tx: tx.execute(SHARE, task_pk=1, bucket=b"old", at=0))
    for number in (10, 190):

        def fill(tx: Tx, number: int = number) -> None:
            for _ in range(number):
                tx.execute(SHARE, task_pk=1, bucket=number.to_bytes(2, "big"), at=BEFORE)

        store.run_sync(fill)
        with counting(store.path) as (tx, effort):
            assert expiry.has_expired(tx, 1, *LIMITS)
            assert batches.expired(tx, 1, BEFORE, START) == ([b"old"], None)
        efforts.append(effort.steps)
    assert efforts[0] == efforts[1]
