"""Contributions in pages."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

from dapd.datastore import Tx, batches
from dapd.datastore.batches import Contribution
from dapd.protocol.batches import time_bucket
from tests.contexts import add_task, open_store
from tests.task_pair import task_pair

LO, HI = time_bucket(1), time_bucket(3)


def _pages(tx: Tx, task_pk: int, size: int) -> list[list[Contribution]]:
    return list(batches.contributions_in_pages(tx, task_pk, LO, HI, size))


def test_e3_pages_are_the_whole_range_each_contribution_once(tmp_path: Path) -> None:
    """Whatever the page's size, also where pages end between two jobs of one bucket."""
    pair = task_pair()
    opened = open_store(tmp_path / "db.sqlite")
    task = add_task(opened.datastore, pair.leader, pair)
    for job in range(5):
        totals = [
            SimpleNamespace(
                bucket=time_bucket(time), count=1, checksum=b"", time_min=1, time_max=1, share=b""
            )
            for time in range(4)
        ]
        opened.datastore.run_sync(
            batches.add_contributions,
            task.task_pk,
            bytes([job]) * 16,
            totals,  # type: ignore[arg-type]
        )
    for size in (1, 3, 10, 11):
        pages = opened.datastore.read_sync(_pages, task.task_pk, size)
        found = [(each.bucket, each.job_id) for page in pages for each in page]
        assert max(map(len, pages)) <= size
        assert len(found) == len(set(found)) == 10
    assert opened.datastore.read_sync(batches.extent, task.task_pk, LO, HI)[0] == 10
    opened.close()
