"""Resealing with another key: everything, in steps, over restarts, until the old key may go."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import structlog

from dapd.collector import Query
from dapd.commits.sealing_keys import (
    check_sealing_keys,
    finish_reseal,
    replace_values,
    reseal_standing,
)
from dapd.crypto import make_sealer, sealing_key_id
from dapd.datastore import Tx, sealed
from dapd.datastore import tasks as task_table
from dapd.datastore.check import check
from dapd.datastore.sealed import COLUMNS
from dapd.keys import reseal
from dapd.runtime.context import Context
from tests.clock import PRECISION
from tests.contexts import make_config, open_context
from tests.pair_harness import query_at, until
from tests.populated_database import FROZEN, SENT, PopulatedDatabase, populated_database
from tests.task_pair import SEALING_KEY, flip, task_pair

OTHER_KEY = bytes(range(32, 64))
EVERY_COLUMN = {
    "tasks.verify_key": 1,
    "tasks.aggregator_token": 1,
    "hpke_keypairs.private_key": 1,
    "collection_jobs.leader_share": 1,
    "batch_shares.share": 2,
    "job_bodies.leader_state": 1,
    "chunk_rows.rows": 3,
}


def used(populated: PopulatedDatabase) -> dict[str, Counter[bytes]]:
    return populated.read(sealed.usage)


def by(key: bytes) -> dict[str, Counter[bytes]]:
    """Every sealed value of the house, by the key that sealed it."""
    return {name: Counter({sealing_key_id(key): n}) for name, n in EVERY_COLUMN.items()}


async def test_f2_a_key_that_was_put_first_seals_all_again_and_the_old_one_may_go(
    tmp_path: Path,
) -> None:
    """Waiting reports, a job under way and a frozen collection go on without the old key."""
    async with populated_database(tmp_path) as populated:
        assert used(populated) == by(populated.key("sealing"))
        populated.use_keys("sealing", "new")
        await populated.leader.start()  # added last: it opens, and nothing is sealed with it
        await populated.leader.stop()
        assert populated.read(sealed.sealing_key_ids) == [sealing_key_id(populated.key("sealing"))]

        populated.use_keys("new", "sealing")
        new = sealing_key_id(populated.key("new"))
        with structlog.testing.capture_logs() as logs:
            await populated.leader.start()
            await until(lambda: _seals_alone(populated.leader.context, new))
            await populated.leader.stop()
        [finished] = [line for line in logs if line["event"] == "reseal_finished"]
        assert finished["key"] == new.hex()
        assert finished["old"] == [sealing_key_id(populated.key("sealing")).hex()]
        assert "remove" in finished["remedy"]
        assert used(populated) == by(populated.key("new"))
        alone = make_sealer([populated.key("new")])
        assert populated.read(sealed.open_every_value, alone) == EVERY_COLUMN
        assert populated.read(check) == []

        populated.use_keys("new")
        await populated.leader.start()
        await populated.harness.pair.helper.start()
        task = populated.harness.task
        frozen = await task.collect(query_at(FROZEN))
        assert (frozen.value, frozen.report_count) == (7, 2)
        rest = await task.collect(Query.interval(SENT * PRECISION, 2 * PRECISION))
        assert (rest.value, rest.report_count) == (18, 3)


async def test_f2_killed_after_any_step_it_goes_on_where_it_was(tmp_path: Path) -> None:
    """Each process makes one step; every value is resealed once, and no column is read twice."""
    async with populated_database(tmp_path) as populated:
        config = populated.use_keys("new", "sealing")
        new = sealing_key_id(populated.key("new"))
        processes = 0
        while True:
            async with open_context(config) as context:
                await context.run(check_sealing_keys, context.sealer.key_ids)
                progress = (await context.read(reseal_standing, new)).progress
                a_pass = reseal.Pass(context, new, progress, page_cells=1)
                while not a_pass.found and await a_pass.step():
                    pass
            assert populated.read(check) == []
            assert a_pass.failures == []
            if not a_pass.found:
                break
            processes += 1
        # One for each field; a chunk's reports are in one.
        assert processes == sum(EVERY_COLUMN.values()) - 1
        assert used(populated) == by(populated.key("new"))
        assert len(populated.read(sealed.sealing_key_ids)) == 2
        async with open_context(config) as context:
            await reseal.run(context)
        assert populated.read(sealed.sealing_key_ids) == [new]
        assert populated.read(sealed.progress, new) == {}


async def test_f2_uploads_jobs_and_collections_go_on_meanwhile(tmp_path: Path) -> None:
    """Chunks are cut, jobs end and batches freeze during the pass: nothing counts twice or keeps
    the old key.
    """
    async with populated_database(tmp_path) as populated:
        harness, pair = populated.harness, populated.harness.pair
        populated.use_keys("new", "sealing")
        new = sealing_key_id(populated.key("new"))
        await pair.helper.start()
        await populated.leader.start()
        uploads = 0
        while uploads < 10 or not await _seals_alone(populated.leader.context, new):
            await harness.upload(harness.seal([1], f"meanwhile {uploads}", at=SENT))
            uploads += 1
        result = await harness.task.collect(Query.interval(SENT * PRECISION, 2 * PRECISION))
        assert (result.value, result.report_count) == (18 + uploads, 3 + uploads)
        assert (await harness.task.collect(query_at(FROZEN))).value == 7
        await populated.leader.stop()
        assert {key for counts in used(populated).values() for key in counts} == {new}


async def test_f2_what_is_changed_meanwhile_is_left_as_it_is(tmp_path: Path) -> None:
    """The pass never restores a value that another transaction has replaced since it was read."""
    pair = task_pair()
    async with open_context(make_config(tmp_path), (pair.leader, pair)) as context:
        (task,) = context.tasks.all()
        (cell,) = await context.read(sealed.page, sealed.VERIFY_KEYS, -1)
        key_id = context.sealer.key_ids[0]
        await context.run(task_table.set_secrets, task, context.sealer)
        values = [(cell, b"too late")]
        assert await context.run(replace_values, sealed.VERIFY_KEYS, values, key_id, 1) == 0
        assert await context.read(sealed.open_every_value, context.sealer)


async def test_f2_a_value_that_does_not_open_keeps_the_old_key(tmp_path: Path) -> None:
    """The daemon names it, reseals everything else, and goes on serving."""
    async with populated_database(tmp_path) as populated:
        config = populated.use_keys("new", "sealing")
        async with open_context(config) as context:
            await context.run(check_sealing_keys, context.sealer.key_ids)
            await context.run(_damage_a_share)
            with structlog.testing.capture_logs() as logs:
                await reseal.run(context)
        [said] = [line for line in logs if line["event"] == "reseal_incomplete"]
        assert said["unopened"] == [
            "batch_shares.share, row 1: sealed value was tampered with, or moved"
        ]
        assert len(populated.read(sealed.sealing_key_ids)) == 2
        old = sealing_key_id(populated.key("sealing"))
        assert {name: n[old] for name, n in used(populated).items() if n[old]} == {
            "batch_shares.share": 1
        }


async def test_f2_the_old_key_stays_while_a_command_seals_with_it(tmp_path: Path) -> None:
    """The last pass finds a task that was added behind the pass, by a configuration set back."""
    pair = task_pair()
    async with open_context(make_config(tmp_path), (pair.leader, pair)) as context:
        first = sealing_key_id(SEALING_KEY)
        other = make_sealer([OTHER_KEY, SEALING_KEY])
        await context.run(task_table.insert, task_pair().helper, other)
        for key_id in (first, *other.key_ids):
            await context.run(sealed.note_sealing_key, key_id)
        assert not await context.run(finish_reseal, first, [sealing_key_id(OTHER_KEY)])
        assert len(await context.read(sealed.sealing_key_ids)) == 2


async def test_f2_with_one_key_there_is_nothing_to_do(tmp_path: Path) -> None:
    """The loop ends at once and logs nothing."""
    async with open_context(make_config(tmp_path)) as context:
        await context.run(check_sealing_keys, context.sealer.key_ids)
        with structlog.testing.capture_logs() as logs:
            await reseal.run(context)
        assert logs == []


async def _seals_alone(context: Context, key_id: bytes) -> bool:
    return await context.read(sealed.sealing_key_ids) == [key_id]


def _damage_a_share(tx: Tx) -> None:
    (cell, *_) = sealed.page(tx, sealed.BATCH_SHARES, -1)
    assert sealed.replace(tx, sealed.BATCH_SHARES, cell, flip(cell.value, -1))


def test_every_sealed_column_is_listed() -> None:
    """A sealed column that is not listed would be lost with the old key."""
    assert {column.name for column in COLUMNS} == set(EVERY_COLUMN)
