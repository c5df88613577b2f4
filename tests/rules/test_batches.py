"""Rules C1 to C8: which reports a batch has, who may collect it, and how often."""

from __future__ import annotations

import secrets
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from dapd.commits.collections import advance_collection, create_collection
from dapd.errors import Abort
from dapd.messages.common import Interval
from dapd.protocol.collect import Wait
from tests.clock import TIME
from tests.database_pair import KEEP_MS, QUERY, DatabasePair, open_databases
from tests.leader_harness import open_leader
from tests.raw_http import answer
from tests.task_pair import task_pair


@pytest.fixture
async def pair(tmp_path: Path) -> AsyncIterator[DatabasePair]:
    """The databases of a time-interval task of at least three reports a batch."""
    async with open_databases(tmp_path) as databases:
        yield databases


def refusal(pair: DatabasePair, selected: Interval, query: Interval) -> str | None:
    """The error type of the Helper's refusal of this batch."""
    with pytest.raises(Abort) as caught:
        pair.serve(pair.share_request(selected, query).encode())
    return caught.value.type


async def test_c1_c4_the_helper_compares_the_whole_query_with_what_is_collected(
    pair: DatabasePair,
) -> None:
    """The selector is free, but the query would be collected with it, and a part of it is."""
    for time in (TIME, TIME + 1):
        pair.aggregate([1, 0, 1], time=time)
    pair.serve(pair.share_request(Interval(TIME, 1)).encode())
    free = Interval(TIME + 1, 1)
    assert refusal(pair, free, Interval(TIME, 2)) == "batchOverlap"
    pair.serve(pair.share_request(free).encode())


async def test_c3_an_upload_makes_the_collection_that_waits_for_it_due(tmp_path: Path) -> None:
    """It would look again by itself only in a minute."""
    pair = task_pair(min_batch_size=3)
    async with open_leader(tmp_path, pair, lambda _, __: answer(500)) as house:
        context, task, at = house.context, house.task, house.context.instant()
        job = await context.run(
            create_collection, task, QUERY.encode(), secrets.token_bytes(16), at, KEEP_MS
        )
        [lease] = await house.lease()
        move = await context.run(advance_collection, lease, task, at, at.now + 60_000)
        assert move == Wait()
        assert await house.lease() == []
        await house.upload(1)
        assert [lease.pk for lease in await house.lease()] == [job.pk]
