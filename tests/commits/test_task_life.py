"""The life of a task, from adding it to adding it again after its deletion."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from dapd.commits.tasks import (
    TaskStanding,
    add_task,
    add_token,
    delete_task,
    rekey_task,
    remove_token,
    set_task_state,
    task_standing,
    use_token,
)
from dapd.crypto import hash_token, make_sealer
from dapd.datastore import Datastore, Tx, batches, collections, safe_clock, tasks, watermarks
from dapd.datastore.safe_clock import StoredClock
from dapd.datastore.uncollected import Uncollected
from dapd.errors import UsageError
from dapd.messages.common import BatchMode
from dapd.protocol.batches import batch_id_range, time_bucket
from dapd.protocol.states import RangeState
from dapd.protocol.task import Instant, Task, TaskSettings, TaskState
from tests.clock import NOW, PRECISION, TIME
from tests.contexts import open_store
from tests.database_pair import NEXT_BATCH, QUERY, DatabasePair, open_databases
from tests.task_pair import AGGREGATOR_TOKEN, COLLECTOR_TOKEN, TaskPair, task_pair

LEEWAY = 300.0
AGED = TaskSettings(report_expiry_age=PRECISION)
OTHER_SEALER = make_sealer([bytes(32)])
"""The sealer of a process that has lost the key of ``pair.sealer``."""


@dataclass
class Operator:
    """Runs commands on one datastore; ``pair`` is the task in the operator's files."""

    store: Datastore
    pair: TaskPair

    @property
    def task_id(self) -> bytes:
        return self.pair.leader.task_id

    def add(self, task: Task) -> bool:
        return self.store.run_sync(add_task, task, self.pair.sealer)

    def make(self, state: TaskState) -> bool:
        return self.store.run_sync(set_task_state, self.task_id, state)

    def delete(self, *, now: int = NOW, discard: bool = False) -> Uncollected:
        return self.store.run_sync(delete_task, self.task_id, now, LEEWAY, discard=discard)

    def task(self) -> Task:
        """Return the stored task."""
        return self.stored().unseal(self.pair.sealer)

    def stored(self) -> tasks.SealedTask:
        found = self.store.read_sync(tasks.find, self.task_id)
        assert found is not None
        return found

    def purge(self) -> None:
        """Do what the garbage collector does once no rows are left."""
        assert self.store.run_sync(tasks.purge, self.stored().task_pk)


@pytest.fixture
def operator(tmp_path: Path) -> Iterator[Operator]:
    opened = open_store(tmp_path / "dapd.sqlite")
    yield Operator(opened.datastore, task_pair(settings=AGED))
    opened.close()


@pytest.fixture
async def databases(tmp_path: Path) -> AsyncIterator[DatabasePair]:
    async with open_databases(tmp_path) as made:
        yield made


class TestStates:
    """Changes between active, draining and disabled."""

    def test_each_change_is_said_once(self, operator: Operator) -> None:
        """A repeated command changes nothing."""
        operator.add(operator.pair.leader)
        for state in (TaskState.DRAINING, TaskState.DISABLED, TaskState.DRAINING, TaskState.ACTIVE):
            assert operator.make(state)
            assert not operator.make(state)
            assert operator.task().state is state

    def test_a_helper_does_not_drain(self, operator: Operator) -> None:
        """A Helper takes no uploads; the error says what to do instead."""
        operator.add(operator.pair.helper)
        with pytest.raises(UsageError, match="drain it at its Leader"):
            operator.make(TaskState.DRAINING)
        assert operator.make(TaskState.DISABLED)

    def test_a_deleted_task_has_no_other_state(self, operator: Operator) -> None:
        """A deleted task's rows may be deleted already."""
        operator.add(operator.pair.leader)
        operator.delete()
        with pytest.raises(UsageError, match="is deleted; `dapd task add` brings it back"):
            operator.make(TaskState.ACTIVE)
        with pytest.raises(UsageError, match="is deleted"):
            operator.delete()
        with pytest.raises(UsageError, match=r"no task .* `dapd task list`"):
            operator.store.run_sync(set_task_state, bytes(32), TaskState.ACTIVE)


class TestDelete:
    """Deleting needs consent while something is uncollected; the watermark stays (D6)."""

    def test_d6_the_mark_is_above_all_that_may_have_been_admitted(self, operator: Operator) -> None:
        """D6: the mark is above now plus the leeway, in whole time precisions."""
        operator.add(operator.pair.leader)
        operator.delete(now=NOW + (PRECISION - 300) * 1000)
        stored = operator.stored()
        assert stored.state is TaskState.DELETED
        assert stored.public().expired_before == TIME + 2

    def test_d6_the_mark_never_falls(self, operator: Operator) -> None:
        """D6: neither below its old value nor below what a restore may have forgotten."""
        operator.add(operator.pair.leader)
        pk = operator.task().task_pk
        operator.store.run_sync(watermarks.quarantine, pk, TIME + 5)
        operator.delete()
        assert operator.stored().public().expired_before == TIME + 5
        operator.purge()
        operator.add(operator.pair.leader)
        operator.delete(now=NOW - 10**9)
        assert operator.stored().public().expired_before == TIME + 5

    async def test_d6_the_mark_is_above_reports_of_a_clock_that_was_ahead(
        self, databases: DatabasePair
    ) -> None:
        """D6: the mark is above reports admitted while the clock was ahead."""
        operator = Operator(databases.store, databases.pair)
        databases.upload(1, time=TIME + 1000)
        operator.delete(discard=True)
        assert operator.stored().public().expired_before == TIME + 1001

    async def test_refused_with_counts_while_something_is_uncollected(
        self, databases: DatabasePair
    ) -> None:
        """The error lists what is uncollected and what to do; nothing changes."""
        operator = Operator(databases.store, databases.pair)
        databases.upload(4)
        databases.aggregate([1, 1, 1])
        job = databases.query(QUERY)
        with pytest.raises(UsageError) as refused:
            operator.delete()
        for part in (
            "4 reports to be aggregated",
            "3 aggregated reports",
            "1 collection whose",
            "drain it and collect them first",
            "--discard",
        ):
            assert part in str(refused.value)
        assert operator.task().state is TaskState.ACTIVE
        left = operator.delete(discard=True)
        assert (left.waiting, left.aggregated, left.jobs, left.collections) == (4, 3, 0, 1)
        assert operator.stored().state is TaskState.DELETED
        assert databases.job(job).state == "waiting"  # the garbage collector's

    async def test_what_a_collection_took_is_collected_once_it_was_fetched(
        self, databases: DatabasePair
    ) -> None:
        """A closed batch counts as uncollected, and so does a result that was never fetched."""
        operator = Operator(databases.store, databases.pair)
        databases.aggregate([1, 1, 1])
        job = databases.query(QUERY)
        pk = databases.leader.task_pk
        bucket, after = time_bucket(TIME), time_bucket(TIME + 1)
        for state in (RangeState.QUARANTINED, RangeState.CLOSED, RangeState.COLLECTED):

            def shut(tx: Tx, state: RangeState = state) -> None:
                tx.execute("DELETE FROM collected")
                batches.close(tx, pk, bucket, after, state=state, collection_pk=job.pk)

            databases.store.run_sync(shut)
            left = databases.store.read_sync(
                task_standing, databases.leader, Instant(NOW, NOW)
            ).uncollected
            assert left.aggregated == (0 if state is RangeState.COLLECTED else 3)
        databases.store.run_sync(
            lambda tx: tx.execute("UPDATE collection_jobs SET state = 'finished', response = x''")
        )
        with pytest.raises(UsageError, match="1 collection whose result nobody has fetched"):
            operator.delete()
        databases.store.run_sync(collections.note_served, job.pk, NOW)
        assert not operator.delete()

    async def test_d6_what_has_expired_is_not_waited_for(self, databases: DatabasePair) -> None:
        """D6: nobody can collect it any more, whether or not the garbage collector has been there.

        By the clock that expires things, as it was stored last.
        """
        databases.upload(1)
        databases.aggregate([1, 1])
        databases.store.run_sync(tasks.set_settings, databases.leader.task_pk, AGED)
        end = (TIME + 2) * PRECISION * 1000
        for safe, left in ((end - 1, (1, 2)), (end, (0, 0))):
            databases.store.run_sync(safe_clock.store, StoredClock(safe))
            task = replace(databases.leader, settings=AGED)
            at = databases.store.read_sync(safe_clock.instant, NOW + 10**9)
            found = databases.store.read_sync(task_standing, task, at).uncollected
            assert (found.waiting, found.aggregated) == left

    async def test_a_helpers_remedy_is_its_leader(self, databases: DatabasePair) -> None:
        """A Helper can't collect, so the error refers to its Leader."""
        databases.aggregate([1, 1])
        with pytest.raises(UsageError, match="let its Leader end it first"):
            Operator(databases.helper_store, databases.pair).delete()


class TestCollectBefore:
    """The time at which the first uncollected report expires."""

    async def test_it_is_the_end_of_the_oldest_bucket_plus_the_age(
        self, databases: DatabasePair
    ) -> None:
        """Waiting and aggregated reports count, collected ones don't."""
        task = replace(databases.leader, settings=AGED)

        def first() -> int | None:
            return databases.store.read_sync(task_standing, task, Instant(NOW, NOW)).collect_before

        assert first() is None
        databases.aggregate([1], time=TIME + 2)
        assert first() == (TIME + 3 + 1) * PRECISION * 1000
        databases.upload(1, time=TIME + 1)
        assert first() == (TIME + 2 + 1) * PRECISION * 1000
        databases.decide(1)
        databases.store.run_sync(
            batches.close, databases.leader.task_pk, time_bucket(TIME), time_bucket(TIME + 3),
            state=RangeState.COLLECTED, collection_pk=None,
        )  # fmt: skip
        assert first() is None

    async def test_without_an_age_there_is_no_such_time(self, databases: DatabasePair) -> None:
        """Without an expiry age the uncollected data is still counted."""
        databases.aggregate([1], time=TIME)
        found = databases.store.read_sync(task_standing, databases.leader, Instant(NOW, NOW))
        assert found == TaskStanding(Uncollected(0, 1, 0, 0, TIME), None)

    async def test_c6_a_leader_selected_batch_goes_whole_by_its_newest(
        self, tmp_path: Path
    ) -> None:
        """C6: its older reports do not expire before it."""
        async with open_databases(tmp_path, mode=BatchMode.LEADER_SELECTED) as databases:
            batch_id, other = databases.open_batch(), databases.open_batch()
            databases.aggregate([1], time=TIME, batch_id=batch_id)
            databases.aggregate([1], time=TIME + 4, batch_id=batch_id)
            databases.aggregate([1], time=TIME + 2, batch_id=other)
            task = replace(databases.leader, settings=AGED)

            def first() -> int | None:
                return databases.store.read_sync(
                    task_standing, task, Instant(NOW, NOW)
                ).collect_before

            assert first() == (TIME + 3 + 1) * PRECISION * 1000
            databases.store.run_sync(
                batches.close, task.task_pk, *batch_id_range(other),
                state=RangeState.COLLECTED, collection_pk=None,
            )  # fmt: skip
            assert first() == (TIME + 5 + 1) * PRECISION * 1000


class TestAddAgain:
    """A task added again continues from its tombstone (D6)."""

    def test_d6_the_same_task_comes_back_with_its_mark_and_new_secrets(
        self, operator: Operator
    ) -> None:
        """D6: the state and the peer's acceptance start anew, the mark stays."""
        operator.add(operator.pair.leader)
        pk = operator.task().task_pk
        operator.store.run_sync(tasks.note_peer_accepted, pk)
        operator.delete()
        with pytest.raises(UsageError, match="still being deleted; try again"):
            operator.add(operator.pair.leader)
        operator.purge()
        fresh = replace(
            operator.pair.leader,
            verify_key=bytes(32),
            aggregator_token="fresh",
            inbound_token_hashes=(hash_token("fresh too"),),
            settings=TaskSettings(batch_target_size=9),
        )
        assert operator.add(fresh)
        assert operator.task() == replace(fresh, task_pk=pk, expired_before=TIME + 1)
        assert not operator.add(fresh)

    def test_a_tombstone_takes_no_other_task(self, operator: Operator) -> None:
        """A task id belongs to one configuration and one role for ever."""
        operator.add(operator.pair.leader)
        operator.delete()
        operator.purge()
        other = replace(operator.pair.configuration, task_info=b"another").encode()
        with pytest.raises(UsageError, match="another TaskConfiguration"):
            operator.add(replace(operator.pair.leader, configuration_bytes=other))
        with pytest.raises(UsageError, match="as its Leader"):
            operator.add(operator.pair.helper)
        assert operator.stored().state is TaskState.PURGED

    def test_a_task_whose_tokens_were_replaced_is_told_how_tokens_change(
        self, operator: Operator
    ) -> None:
        """The file is outdated once its token is invalid, not while both tokens are valid."""
        operator.add(operator.pair.helper)
        operator.store.run_sync(add_token, operator.task_id, hash_token("second"))
        assert not operator.add(operator.pair.helper)
        operator.store.run_sync(remove_token, operator.task_id)
        with pytest.raises(UsageError, match=r"another token; .*`dapd task token`"):
            operator.add(operator.pair.helper)

    async def test_what_is_made_before_the_mark_is_reached_stays(self, tmp_path: Path) -> None:
        """The mark may lie ahead of the clock; a collection that waits for the first report of the
        second life is there until it has expired by its own age.
        """
        async with open_databases(tmp_path, mode=BatchMode.LEADER_SELECTED) as databases:
            task = replace(databases.leader, settings=AGED, expired_before=TIME + 5)
            job = databases.query(NEXT_BATCH)
            databases.store.run_sync(
                lambda tx: tx.execute("UPDATE collection_jobs SET state = 'failed'")
            )
            for later, is_there in ((0, True), (PRECISION, True), (2 * PRECISION, False)):
                at = Instant(NOW + later * 1000, NOW + later * 1000)
                found = databases.store.read_sync(
                    collections.by_id, task.task_pk, job.id, task.mark_at(at)
                )
                assert (found is not None) is is_there


class TestTokens:
    """One or two inbound tokens are valid; only a Leader has an outbound one (A9)."""

    def test_a9_the_older_goes_and_the_last_stays(self, operator: Operator) -> None:
        """A9: a third token is refused, and so is removing the last one."""
        operator.add(operator.pair.leader)
        first, second, third = (hash_token(each) for each in (COLLECTOR_TOKEN, "second", "third"))
        operator.store.run_sync(add_token, operator.task_id, second)
        assert operator.task().inbound_token_hashes == (first, second)
        with pytest.raises(UsageError, match=r"2 valid tokens; .*`dapd task token remove`"):
            operator.store.run_sync(add_token, operator.task_id, third)
        assert operator.store.run_sync(remove_token, operator.task_id) == first
        assert operator.task().inbound_token_hashes == (second,)
        with pytest.raises(UsageError, match="add its successor first"):
            operator.store.run_sync(remove_token, operator.task_id)

    def test_i9_the_outbound_token_is_sealed_and_the_leaders(self, operator: Operator) -> None:
        """I9: the database contains it only sealed; a Helper has none."""
        operator.add(operator.pair.leader)
        operator.store.run_sync(use_token, operator.task_id, "brand-new", operator.pair.sealer)
        assert operator.task().aggregator_token == "brand-new"
        assert b"brand-new" not in repr(operator.stored().row).encode()

    def test_a_helper_uses_none(self, operator: Operator) -> None:
        """The error says that the token belongs to the Leader's operator."""
        operator.add(operator.pair.helper)
        with pytest.raises(UsageError, match="give the token to the Leader's operator"):
            operator.store.run_sync(use_token, operator.task_id, "x", operator.pair.sealer)


class TestRekey:
    """Rekeying restores secrets from the file after their sealing key was lost."""

    @pytest.mark.parametrize("role", ["leader", "helper"])
    def test_all_is_as_before_under_the_new_key(self, operator: Operator, role: str) -> None:
        """Watermarks, settings and state stay; replaced inbound tokens stay replaced."""
        task: Task = getattr(operator.pair, role)
        operator.add(task)
        pk = operator.task().task_pk
        operator.store.run_sync(watermarks.quarantine, pk, TIME)
        operator.make(TaskState.DISABLED)
        before = operator.task()
        file = replace(task, settings=TaskSettings("async"))
        assert operator.store.run_sync(rekey_task, file, OTHER_SEALER)
        assert operator.stored().unseal(OTHER_SEALER) == before
        assert not operator.stored().is_readable(operator.pair.sealer)

    def test_a_revoked_token_stays_revoked(self, operator: Operator) -> None:
        """Inbound tokens are not sealed, so an old file must not revive an old token."""
        operator.add(operator.pair.helper)
        operator.store.run_sync(add_token, operator.task_id, hash_token("second"))
        operator.store.run_sync(remove_token, operator.task_id)
        assert not operator.store.run_sync(rekey_task, operator.pair.helper, OTHER_SEALER)
        found = operator.stored().unseal(OTHER_SEALER)
        assert found.inbound_token_hashes == (hash_token("second"),)

    def test_the_file_of_another_task_is_refused(self, operator: Operator) -> None:
        """Role, configuration and the Collector's key must be the same."""
        pair = operator.pair
        operator.add(pair.leader)
        other = replace(pair.configuration, task_info=b"another").encode()
        for file, why in (
            (replace(pair.leader, configuration_bytes=other), "another TaskConfiguration"),
            (replace(pair.leader, verification_key_id=7), "another verification_key_id"),
            (pair.helper, "as its Leader"),
            (replace(pair.leader, task_id=bytes(32)), "no task"),
        ):
            with pytest.raises(UsageError, match=why):
                operator.store.run_sync(rekey_task, file, OTHER_SEALER)
        assert operator.task().aggregator_token == AGGREGATOR_TOKEN

    def test_a_task_that_lost_nothing_keeps_its_secrets(self, operator: Operator) -> None:
        """An old file can't bring a replaced token back."""
        operator.add(operator.pair.leader)
        with pytest.raises(UsageError, match="has all its secrets"):
            operator.store.run_sync(rekey_task, operator.pair.leader, operator.pair.sealer)

    def test_a_leader_whose_token_was_dropped_is_unreadable(self, operator: Operator) -> None:
        """`dapd datastore forget-key` leaves nothing where a lost key had sealed something."""
        operator.add(operator.pair.leader)
        operator.store.run_sync(lambda tx: tx.execute("UPDATE tasks SET aggregator_token = NULL"))
        assert not operator.stored().is_readable(operator.pair.sealer)
        assert operator.store.run_sync(rekey_task, operator.pair.leader, operator.pair.sealer)
        assert operator.task().aggregator_token == AGGREGATOR_TOKEN
