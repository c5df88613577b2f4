"""Leases of jobs (rule E2)."""

from __future__ import annotations

from pathlib import Path

import pytest

from dapd.datastore import Datastore, Tx, leases, tasks
from dapd.datastore.leases import LEASE_MS, Due, Lease, Scope
from dapd.protocol.task import TaskState
from tests.datastore.test_sqlite import open_new

NOW = 1_000_000_000


@pytest.fixture
def datastore(tmp_path: Path) -> Datastore:
    made = open_new(tmp_path)
    made.run_sync(add_job)
    return made


def add_job(
    tx: Tx, task_pk: int = 1, state: str = "assigned", run_at: int = NOW, peer: str = ""
) -> None:
    """Insert a job, and its task unless that exists."""
    tx.execute(
        "INSERT INTO tasks (task_pk, task_id, role, dap_version, configuration,"
        " verification_key_id, verify_key, collector_hpke_config, inbound_token_hashes)"
        " VALUES (:task_pk, :task_id, 'leader', 'dap-18', x'', 0, x'', x'', x'')"
        " ON CONFLICT DO NOTHING",
        task_pk=task_pk,
        task_id=task_pk.to_bytes(2, "big"),
    )
    tx.execute(
        "INSERT INTO aggregation_jobs (id, task_pk, role, state, n, bucket, run_at, peer, newest,"
        " created_at)"
        " VALUES (randomblob(16), :task_pk, 'leader', :state, 5, x'', :run_at, :peer, 0, :run_at)",
        task_pk=task_pk,
        peer=peer,
        state=state,
        run_at=run_at,
    )


def lease_all(datastore: Datastore, now: int) -> list[Lease]:
    found, _ = datastore.run_sync(leases.lease_due, now, list)
    return found


def states(datastore: Datastore) -> tuple[int, int, int]:
    row = datastore.read_sync(
        lambda tx: tx.one("SELECT run_at, attempts, crashes FROM aggregation_jobs")
    )
    assert row is not None
    return row[0], row[1], row[2]


def test_e2_a_leased_job_is_not_leased_again_until_the_lease_ends(datastore: Datastore) -> None:
    """Only one lease holds at a time; an expired one is replaced."""
    assert len(lease_all(datastore, NOW)) == 1
    assert lease_all(datastore, NOW + LEASE_MS - 1) == []
    assert len(lease_all(datastore, NOW + LEASE_MS)) == 1


def test_e2_a_renewed_lease_holds_longer(datastore: Datastore) -> None:
    """A running step keeps its job."""
    held = lease_all(datastore, NOW)
    datastore.run_sync(leases.renew, held, NOW + LEASE_MS - 1)
    assert lease_all(datastore, NOW + LEASE_MS) == []


def test_e2_attempts_rise_in_the_leasing_commit_and_fall_with_an_answer(
    datastore: Datastore,
) -> None:
    """Consecutive failures count as attempts; an answer resets the count."""
    (lease,) = lease_all(datastore, NOW)
    datastore.run_sync(leases.release, lease, NOW, error="no route")
    (lease,) = lease_all(datastore, NOW)
    assert lease.due.attempts == 1
    assert states(datastore)[1] == 2
    datastore.run_sync(leases.release, lease, NOW, reset_attempts=True)
    assert states(datastore)[1] == 0


def test_e2_a_release_without_the_lease_changes_nothing(datastore: Datastore) -> None:
    """A step that has lost its lease can't release its successor's."""
    (lost,) = lease_all(datastore, NOW)
    (held,) = lease_all(datastore, NOW + LEASE_MS)
    assert not datastore.run_sync(leases.release, lost, NOW + 1)
    assert datastore.run_sync(leases.release, held, NOW + 1)


def test_e2_a_leased_job_is_not_made_due(datastore: Datastore) -> None:
    """Its step is under way, and says itself when the job runs next."""
    (lease,) = lease_all(datastore, NOW)
    later = NOW + LEASE_MS - 1
    assert not datastore.run_sync(leases.make_due, "aggregation", lease.pk, later)
    assert states(datastore)[0] == NOW
    datastore.run_sync(leases.release, lease, later + LEASE_MS)
    assert datastore.run_sync(leases.make_due, "aggregation", lease.pk, later)
    assert states(datastore)[0] == later


def test_e2_start_clears_leases_and_a_job_that_kills_twice_backs_off(datastore: Datastore) -> None:
    """The first crash may have another cause; from the second on the job backs off."""
    lease_all(datastore, NOW)
    datastore.run_sync(leases.clear_all, NOW)
    assert states(datastore) == (NOW, 1, 1)
    lease_all(datastore, NOW)
    datastore.run_sync(leases.clear_all, NOW)
    run_at, _, crashes = states(datastore)
    assert run_at > NOW
    assert crashes == 2


def test_d4_the_time_in_which_no_daemon_ran_does_not_count_as_refused(datastore: Datastore) -> None:
    """The clock of refusals stops at a start, and keeps what it shows."""
    datastore.run_sync(
        lambda tx: tx.execute(
            "UPDATE aggregation_jobs SET state = 'stored', refused_ms = 7, refused_at = 5"
        )
    )
    datastore.run_sync(leases.clear_all, NOW)
    clock = datastore.read_sync(
        lambda tx: tx.all("SELECT refused_ms, refused_at FROM aggregation_jobs")
    )
    assert clock == [(7, None)]


def test_e2_a_run_at_beyond_every_legal_wait_is_due(datastore: Datastore) -> None:
    """After the clock was set back, a job must not wait for years."""
    (lease,) = lease_all(datastore, NOW)
    datastore.run_sync(leases.release, lease, NOW + 600_000)
    found = [
        datastore.run_sync(leases.lease_due, now, list, longest_wait=600_000)[0]
        for now in (NOW, NOW - 1)
    ]
    assert [len(each) for each in found] == [0, 1]


def test_the_oldest_due_job_comes_first_and_the_next_is_announced(datastore: Datastore) -> None:
    """The dispatcher picks by age, and learns when to look again."""
    datastore.run_sync(
        lambda tx: tx.execute(
            "INSERT INTO aggregation_jobs (id, task_pk, role, state, n, bucket, run_at, newest,"
            " created_at) VALUES (x'0b', 1, 'leader', 'stored', 5, x'', :early, 0, 0),"
            " (x'0c', 1, 'leader', 'stored', 5, x'', :later, 0, 0)",
            early=NOW - 5,
            later=NOW + 7,
        )
    )
    seen: list[Due] = []

    def look(due: list[Due]) -> list[Due]:
        seen.extend(due)
        return []

    _, following = datastore.run_sync(leases.lease_due, NOW, look)  # type: ignore[arg-type]
    assert [due.run_at for due in seen] == [NOW - 5, NOW]
    assert following == NOW + 7


def test_jobs_of_a_task_that_is_not_served_wait_and_hide_nobody(datastore: Datastore) -> None:
    """However many jobs of a task that is disabled, or that this process can't read, are due, those
    of other tasks are found.
    """
    for state in ("assigned", "stored"):
        for task_pk in (2, 3):
            for _ in range(10):
                datastore.run_sync(add_job, task_pk, state, NOW - 1000)
    datastore.run_sync(tasks.set_state, 2, TaskState.DISABLED)
    scope = Scope(unreadable=[3])
    found, following = datastore.run_sync(leases.lease_due, NOW, list, scope, 5)
    assert [lease.due.task_pk for lease in found] == [1]
    assert following is None
    datastore.run_sync(tasks.set_state, 2, TaskState.ACTIVE)
    assert len(lease_all(datastore, NOW)) == 40
