"""Makes ``tests/upgrade/schema-N`` of the schema that this version of dapd has.

    .venv/bin/python -m tests.upgrade.make

Once for each schema, by the version that is released with it; from then on it never changes. While
a schema is unreleased and edited, remove the directory and make it again.
"""

from __future__ import annotations

import lzma
import sys
import tempfile
from pathlib import Path
from typing import Literal

import trio

from dapd.commits.tasks import add_task
from dapd.datastore import Tx, backup
from dapd.datastore.migrate import migrations
from dapd.protocol.task import TaskSettings
from dapd.taskfile import TaskDraft, aggregator_task, new_task, write_task_files
from dapd.testing import Pair
from tests.clock import TIME
from tests.pair_harness import running_clock, until
from tests.upgrade import old_databases

Mode = Literal["time-interval", "leader-selected"]
_MODES: tuple[Mode, ...] = ("time-interval", "leader-selected")
_STORED = "SELECT count(*) FROM aggregation_jobs WHERE state = 'stored'"


async def make(schema: Path) -> None:
    """Let a pair live through what a database should hold, and keep its databases."""
    with tempfile.TemporaryDirectory() as temporary:
        directory = Path(temporary)
        async with old_databases.pair_of(directory, running_clock()) as (pair, http):
            for mode in _MODES:
                await _add_task(pair, schema / mode, mode)
            timed = old_databases.harness(schema, "time-interval", pair, http)
            selected = old_databases.harness(schema, "leader-selected", pair, http)
            reports = timed.seal(old_databases.COLLECTED, "collected", at=TIME - 1)
            assert await timed.upload(reports) == []
            result = await timed.task.collect(old_databases.BEFORE_TIME)
            assert result.value == sum(old_databases.COLLECTED)
            await pair.helper.stop()
            assert await timed.upload(timed.seal(old_databases.IN_A_JOB, "in a job")) == []
            await until(lambda: _is_stored(pair))
            for harness in (timed, selected):
                assert await harness.upload(harness.seal(old_databases.WAITING, "waiting")) == []
        for role in old_databases.ROLES:
            database = directory / role / "dapd.sqlite"
            copy = backup.take(database, directory, lambda _: "copy", now=0, spare=0)
            packed = lzma.compress(copy.path.read_bytes(), preset=9)
            (schema / f"{role}.sqlite.xz").write_bytes(packed)


async def _add_task(pair: Pair, directory: Path, mode: Mode) -> None:
    files = new_task(
        TaskDraft(
            vdaf={"type": "count"},
            batch_mode=mode,
            min_batch_size=len(old_databases.WAITING),
            time_precision=3600,
            leader_aggregator_endpoint=old_databases.url("leader"),
            helper_aggregator_endpoint=old_databases.url("helper"),
        ),
        allow_insecure_http=True,
        allow_tiny_batches=True,
    )
    directory.mkdir(parents=True)
    write_task_files(directory, files)
    for side, file in ((pair.leader, files.leader), (pair.helper, files.helper)):
        task = aggregator_task(file, TaskSettings(report_expiry_age=28 * 86_400))
        await side.context.run(add_task, task, side.context.sealer)
        await side.context.tasks.reload()


async def _is_stored(pair: Pair) -> bool:
    def look(tx: Tx) -> bool:
        return tx.all(_STORED) == [(1,)]

    return await pair.leader.context.read(look)


def main() -> None:
    """Refuses to replace one."""
    schema = old_databases.HERE / f"schema-{migrations()[-1].version}"
    if schema.exists():
        sys.exit(f"{schema} is there; a released one never changes, an unreleased one is removed")
    trio.run(make, schema)
    sys.stdout.write(f"{schema} is made; commit it\n")


if __name__ == "__main__":
    main()
