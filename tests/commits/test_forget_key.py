"""Forgetting a lost sealing key: its values are dropped and counted, all else stays."""

from __future__ import annotations

from collections.abc import MutableMapping
from pathlib import Path
from typing import Any

import pytest
import structlog

from dapd.collector import CollectionFailed
from dapd.commits.sealing_keys import ORDER, Forgetting, check_sealing_keys, forget_id, forget_page
from dapd.commits.tasks import rekey_task
from dapd.config.keyfiles import read_sealing_keys
from dapd.crypto import make_sealer, sealing_key_id
from dapd.datastore import Tx, sealed
from dapd.datastore.check import check
from dapd.datastore.sqlite import Row
from dapd.errors import UsageError
from dapd.keys import reseal
from dapd.protocol.task import Instant, TaskSettings
from dapd.reports import ReportError
from dapd.taskfile import aggregator_task
from tests.clock import NOW, TIME
from tests.contexts import open_context, open_store
from tests.pair_harness import TaskHarness, query_at
from tests.populated_database import (
    FROZEN,
    SENT,
    SUMMED,
    WAITING,
    PopulatedDatabase,
    populated_database,
)
from tests.task_pair import make_ids

_OLD = "sealed to the old HPKE key"
REPLAYED, OUTDATED = ReportError.REPORT_REPLAYED, ReportError.OUTDATED_CONFIG


def rows(populated: PopulatedDatabase, sql: str) -> list[Row]:
    def look(tx: Tx) -> list[Row]:
        return tx.all(sql)

    return populated.read(look)


def counters(populated: PopulatedDatabase) -> dict[str, int]:
    return dict(rows(populated, "SELECT name, value FROM task_counters"))


def forget(populated: PopulatedDatabase, *, pages: int | None = None) -> dict[str, int]:
    """Forget the old key, or only its first pages; return what was counted as lost."""
    forgetting = Forgetting(sealing_key_id(populated.key("sealing")), Instant(NOW, NOW))
    total: dict[str, int] = {}
    opened = open_store(populated.database)
    try:
        run = opened.datastore.run_sync
        for column in ORDER:
            after: int | None = -1
            while after is not None:
                if pages == 0:
                    return total
                pages = None if pages is None else pages - 1
                after, lost = run(forget_page, column, after, forgetting)
                total = {name: total.get(name, 0) + lost.get(name, 0) for name in {*total, *lost}}
        run(forget_id, forgetting.key_id)
        return total
    finally:
        opened.close()


async def reseal_until(populated: PopulatedDatabase, column: sealed.Column) -> None:
    """Reseal the columns before this one with the new key."""
    async with open_context(populated.use_keys("new", "sealing")) as context:
        await context.run(check_sealing_keys, context.sealer.key_ids)
        a_pass = reseal.Pass(context, context.sealer.key_ids[0], {})
        while a_pass.column is not column:
            assert await a_pass.step()


async def test_f2_all_that_the_key_sealed_goes_and_is_counted(tmp_path: Path) -> None:
    """The job and the collection end, batches are closed; ids and ranges stay."""
    async with populated_database(tmp_path) as populated:
        before = counters(populated)
        assert forget(populated) == {"aggregate_lost": 3, "contribution_lost": 4}
        assert counters(populated) == {**before, "aggregate_lost": 3, "contribution_lost": 4}
        assert populated.read(sealed.sealing_key_ids) == []
        assert not any(populated.read(sealed.usage).values())
        assert set(rows(populated, "SELECT state FROM report_chunks")) == {("decided",)}
        assert set(rows(populated, "SELECT state FROM aggregation_jobs")) == {
            ("finished",),
            ("lost",),
        }
        [(state, error, detail)] = rows(
            populated, "SELECT state, error, detail FROM collection_jobs"
        )
        assert (state, error) == ("failed", "batchInvalid")
        assert sealing_key_id(populated.key("sealing")).hex() in detail
        closed = rows(populated, "SELECT hex(lo), hex(hi), state FROM collected ORDER BY lo")
        assert closed == [
            (f"{time:016X}", f"{time + 1:016X}", state)
            for time, state in ((SUMMED, "quarantined"), (FROZEN, "collected"))
        ]
        [(hpke_state, private_key)] = rows(
            populated, "SELECT state, private_key FROM hpke_keypairs"
        )
        assert (hpke_state, private_key) == ("deleted", b"")
        assert [finding.table for finding in populated.read(check)] == ["tasks"]
        populated.rekey()


async def test_f2_the_daemon_starts_without_the_key_and_serves_a_task_once_it_is_rekeyed(
    tmp_path: Path,
) -> None:
    """The error says what to do; afterwards new reports count and old ones are replays."""
    async with populated_database(tmp_path) as populated:
        harness, pair = populated.harness, populated.harness.pair
        config = populated.use_keys("new")
        with pytest.raises(UsageError, match="forget-key"):
            await populated.leader.start()
        old_reports = harness.seal([1], _OLD, at=TIME)
        forget(populated)

        other = await _start(populated)
        [unreadable] = other["task_unreadable"]
        assert "rekey" in unreadable["remedy"]
        context = pair.leader.context
        assert context.tasks.all() == []
        assert await context.tasks.find(harness.task.task_id) is None
        task = aggregator_task(harness.task.files.leader, TaskSettings())
        await context.run(rekey_task, task, make_sealer(read_sealing_keys(config)))
        await context.tasks.reload()

        await pair.helper.start()
        assert await harness.upload(old_reports) == [(make_ids(1, _OLD)[:16], OUTDATED)]
        harness = TaskHarness(harness.task, harness.http)  # which asks for the HPKE keys of now
        for label, n, time in (("summed", 2, SUMMED), ("sent", 2, SENT), ("waiting", 1, WAITING)):
            again = await harness.upload(harness.seal([1] * n, label, at=time))
            assert [code for _, code in again] == [REPLAYED] * n, label
        await harness.upload(harness.seal([8, 9], "new", at=WAITING))
        result = await harness.task.collect(query_at(WAITING))
        assert (result.value, result.report_count) == (17, 2)
        for shut in (SUMMED, FROZEN):
            with pytest.raises(CollectionFailed):
                await harness.task.collect(query_at(shut))


@pytest.mark.parametrize(
    ("column", "lost", "summed"),
    [
        (sealed.LEADER_STATES, {"aggregate_lost": 3}, 3),
        (sealed.BATCH_SHARES, {"aggregate_lost": 3, "contribution_lost": 2}, None),
        (sealed.CHUNK_ROWS, {"aggregate_lost": 3}, 3),
    ],
)
async def test_f2_what_another_key_sealed_stays(
    tmp_path: Path, column: sealed.Column, lost: dict[str, int], summed: int | None
) -> None:
    """A batch summed before is collected; one that lost a contribution never is."""
    async with populated_database(tmp_path) as populated:
        await reseal_until(populated, column)
        populated.use_keys("new")
        assert forget(populated) == lost
        assert populated.read(check) == []
        assert populated.read(sealed.sealing_key_ids) == [sealing_key_id(populated.key("new"))]
        alone = make_sealer([populated.key("new")])
        opened = populated.read(sealed.open_every_value, alone)
        assert opened["batch_shares.share"] == (2 if summed else 0)
        await populated.leader.start()
        await populated.harness.pair.helper.start()
        frozen = await populated.harness.task.collect(query_at(FROZEN))
        assert (frozen.value, frozen.report_count) == (7, 2)
        if summed:
            assert (await populated.harness.task.collect(query_at(SUMMED))).value == summed
        else:
            with pytest.raises(CollectionFailed):
                await populated.harness.task.collect(query_at(SUMMED))


async def test_f2_interrupted_it_goes_on_and_counts_nothing_twice(tmp_path: Path) -> None:
    """However often forgetting is killed, each loss is counted once."""
    async with populated_database(tmp_path) as populated:
        before = counters(populated)
        pages = 0
        while populated.read(sealed.sealing_key_ids):
            pages += 1
            forget(populated, pages=pages)
            assert {finding.table for finding in populated.read(check)} <= {"tasks"}
        assert pages > len(ORDER)
        populated.rekey()
        assert counters(populated) == {**before, "aggregate_lost": 3, "contribution_lost": 4}


async def _start(populated: PopulatedDatabase) -> dict[str, list[MutableMapping[str, Any]]]:
    """Start the Leader; return its log lines by event."""
    with structlog.testing.capture_logs() as logs:
        await populated.leader.start()
    found: dict[str, list[MutableMapping[str, Any]]] = {}
    for line in logs:
        found.setdefault(line["event"], []).append(line)
    return found
