"""The jobs' operations on collections: progress, and giving up (A6, D4)."""

from __future__ import annotations

from pathlib import Path
from typing import get_args

import pytest

from dapd.admin import jobs as operations
from dapd.admin.job_view import Progress
from dapd.admin.jobs import AbandonRequest, JobRequest, JobsRequest
from dapd.commits.abandon import abandon
from dapd.datastore import batches, jobs
from dapd.datastore.sqlite import Tx
from dapd.errors import UsageError
from dapd.http import Refused
from dapd.messages.common import BatchMode
from dapd.protocol.states import CollectionState, HelperJobState, LeaderJobState, RangeState
from tests.database_pair import NEXT_BATCH
from tests.server.test_collection_jobs import served


@pytest.mark.parametrize("mode", BatchMode)
async def test_a_waiting_collection_shows_what_it_counts(tmp_path: Path, mode: BatchMode) -> None:
    """Aggregated reports and how many it needs, in both batch modes."""
    async with served(tmp_path, mode=mode) as it:
        location = await (
            it.started() if mode is BatchMode.TIME_INTERVAL else it.started(NEXT_BATCH)
        )
        (listed,) = (await operations.list_jobs(it.context, JobsRequest())).jobs
        assert (listed.kind, listed.id) == ("collection", location.rpartition("/")[2])
        shown = await operations.show(it.context, JobRequest(listed.job))
        needed = it.databases.leader.configuration.min_batch_size
        assert shown.progress == Progress(0, 0, 0, needed)
        assert shown.job.state == "waiting"


async def test_a6_an_abandoned_collection_is_gone_for_its_collector(tmp_path: Path) -> None:
    """The Helper wasn't asked yet, so its interval stays open; giving up twice is refused."""
    async with served(tmp_path) as it:
        location = await it.started()
        name = f"c{it.job(location).pk}"
        with pytest.raises(UsageError, match="confirmation"):
            await operations.abandon(it.context, AbandonRequest(name, "c99"))
        assert (await operations.abandon(it.context, AbandonRequest(name, name))).lost == 0
        assert isinstance(await it.get(location), Refused)
        with pytest.raises(UsageError, match="has ended: deleted"):
            await operations.abandon(it.context, AbandonRequest(name, name))


@pytest.mark.parametrize(("sends", "left"), [(0, []), (1, ["collected"])])
async def test_a6_an_abandoned_frozen_collection_stays_collected_if_it_was_sent(
    tmp_path: Path, sends: int, left: list[str]
) -> None:
    """After a send the Helper may have marked the batch as collected."""
    async with served(tmp_path) as it:
        pk = it.job(await it.started()).pk

        def give_up(tx: Tx) -> list[str]:
            job = jobs.by_pk(tx, "collection", pk)
            assert job is not None
            lo, hi = tx.all("SELECT lo, hi FROM collection_jobs")[0]
            batches.close(tx, job.task_pk, lo, hi, state=RangeState.CLOSED, collection_pk=pk)
            tx.execute("UPDATE collection_jobs SET state = 'frozen', sends = :sends", sends=sends)
            frozen = jobs.by_pk(tx, "collection", pk)
            assert frozen is not None
            abandon(tx, frozen, it.context.instant())
            return [state for (state,) in tx.all("SELECT state FROM collected")]

        assert await it.context.run(give_up) == left


async def test_an_unknown_job_and_a_strange_cursor_are_refused(tmp_path: Path) -> None:
    """The error names the command that lists jobs."""
    async with served(tmp_path) as it:
        for name in ("a1", "c1", "x", "", "a0", "5WeO", "!"):
            with pytest.raises(UsageError, match="jobs list"):
                await operations.show(it.context, JobRequest(name))
        for cursor in ("", "!", "YTA", "_w"):
            with pytest.raises(UsageError, match="cursor"):
                await operations.list_jobs(it.context, JobsRequest(cursor=cursor))
        page = await operations.list_jobs(it.context, JobsRequest(ended=True, limit=1))
        assert (page.jobs, page.next) == ((), None)


def test_jobs_can_be_listed_by_every_state() -> None:
    """The words that a request may have are the states of jobs of all kinds."""
    states = {*LeaderJobState, *HelperJobState, *CollectionState}
    assert set(get_args(operations.State)) == {str(state) for state in states}
