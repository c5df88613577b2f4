"""How free space goes back to the file system, with a real file."""

from __future__ import annotations

import sqlite3
from pathlib import Path

import pytest

from dapd.datastore import Tx
from dapd.datastore.sqlite import Pages
from dapd.gc import space
from tests.contexts import make_config, open_context

_ADD = "INSERT INTO sealing_keys (key_id) VALUES (:key_id)"


@pytest.mark.parametrize(
    ("total", "free", "surplus"),
    [(0, 0, 0), (5_000, 999, 0), (5_000, 1_500, 500), (50_000, 5_000, 0), (50_000, 6_000, 1_000)],
)
def test_a_file_keeps_a_tenth_of_its_pages_and_a_thousand_at_least(
    total: int, free: int, surplus: int
) -> None:
    """New rows use them before the file grows."""
    assert space.surplus(Pages(total, free)) == surplus


async def test_what_was_deleted_goes_back_to_the_file_system(tmp_path: Path) -> None:
    """The file gets shorter and stays intact; other rows are as they were."""
    kept = [bytes([i % 256]) * 4000 + i.to_bytes(2, "big") for i in range(3, 4000, 10)]

    def fill(tx: Tx) -> None:
        for i in range(4000):
            tx.execute(_ADD, key_id=bytes([i % 256]) * 4000 + i.to_bytes(2, "big"))

    def empty(tx: Tx) -> None:
        for i in range(4000):
            if i % 10 != 3:
                tx.execute("DELETE FROM sealing_keys WHERE rowid = :row", row=i + 1)

    config = make_config(tmp_path)
    async with open_context(config) as context:
        await context.run(fill)
        await context.run(empty)
        before = await context.read(Tx.pages)
        assert before.free > 3_000
        await space.run_round(context)
        after = await context.read(Tx.pages)
        assert space.surplus(after) == 0
        assert after.total - after.free <= before.total - before.free
        assert after.free > 900
        await space.run_round(context)
        assert await context.read(Tx.pages) == after
    path = config.datastore.path
    assert path.stat().st_size == after.total * 4096
    connection = sqlite3.connect(path)
    assert connection.execute("PRAGMA quick_check").fetchall() == [("ok",)]
    found = connection.execute("SELECT key_id FROM sealing_keys ORDER BY rowid").fetchall()
    assert [key for (key,) in found] == kept
    connection.close()
