"""SIGKILL around each COMMIT of what keeps a daemon going for years: D1, D6, F1, F2.

Keys follow each other, values are sealed anew, contributions are merged, what has expired goes:
whatever dies in between, afterwards all is as if nothing had.
"""

from __future__ import annotations

from contextlib import AsyncExitStack
from pathlib import Path

import pytest
import trio

from dapd.client import Client, UploadFailed
from dapd.gc.compact import MANY
from dapd.http import Patience
from dapd.messages.common import b64url_encode
from tests.crash import dying
from tests.crash.load import PRECISION, open_house
from tests.crash.steps import (
    MOMENTS,
    OFTEN,
    aggregated,
    an_hour_ago,
    asked_for_a_share,
    collect,
    counters,
    dies,
    expires,
    left,
    send_a_job,
    stop,
    typed,
    upload,
    use_new_sealing_key,
)
from tests.processes.daemons import QUICK, SECONDS, assert_calm, start

UPKEEP = (
    "commits.hpke_keys.rotate",
    "commits.sealing_keys.replace_values",
    "commits.sealing_keys.finish_reseal",
)
LEADERS_GARBAGE = (
    "gc.loop.raise_marks",
    "gc.pace.expire_collections",
    "gc.pace.drop_past_chunks",
    "gc.pace.drop_jobs",
    "gc.pace.drop_collections",
    "gc.pace.drop_contributions",
    "gc.pace.drop_ranges",
    "gc.pace._drop_batches",
)
HELPERS_GARBAGE = (
    "gc.loop.raise_marks",
    "gc.pace.drop_jobs",
    "gc.pace.drop_shares",
    "gc.pace.drop_contributions",
    "gc.pace.drop_ranges",
    "gc.pace._drop_batches",
    "gc.pace.drop_ranges",  # of the batch, whose id stays closed for another age
)
"""Each in the order of a sweep."""


@MOMENTS
async def test_d1_keys_values_and_sums_outlive_a_kill(tmp_path: Path, moment: str) -> None:
    """F1, F2: one key follows the other, all is sealed with the new key, and the sum is the sum."""
    one_job_each = QUICK.replace("max_job_size = 20", "max_job_size = 5")
    with trio.fail_after(SECONDS):
        async with open_house(tmp_path, settings=one_job_each) as house:
            files, at = house.new_task("sync", "time-interval"), an_hour_ago()
            await start(*house.daemons)
            values = range(5 * (MANY + 6))
            await upload(files, at, *values)
            await aggregated(house.leader, len(values))
            await stop(*house.daemons)
            for daemon in house.daemons:
                old_keys = daemon.read("SELECT key_id FROM sealing_keys")
                daemon.change("UPDATE hpke_keypairs SET changed_at = 1")
                use_new_sealing_key(daemon)
                await dies(daemon, moment, UPKEEP)
                await start(daemon)
                if moment == "before":
                    await daemon.logged("reseal_finished")
                await stop(daemon)
                states = daemon.read("SELECT state FROM hpke_keypairs ORDER BY state")
                assert states == [("active",), ("pending",)]
                (new_key,) = daemon.read("SELECT key_id FROM sealing_keys")
                assert new_key not in old_keys
                with daemon.config.open("a") as file:
                    file.write(OFTEN)
                await dies(daemon, moment, ["commits.garbage.compact_bucket"])
            await start(*house.daemons)
            assert await collect(files, at) == (len(values), sum(values))
            await stop(*house.daemons)
            assert_calm(house.daemons)


@MOMENTS
async def test_d6_what_expires_is_counted_once_whenever_a_daemon_is_killed(
    tmp_path: Path, moment: str
) -> None:
    """Reports in no job, in a job that was sent, in a batch whose share was asked for, and in those
    that were collected or may still be: all go, each counted for what became of it.
    """
    with trio.fail_after(SECONDS):
        async with open_house(tmp_path) as house, AsyncExitStack() as stack:
            leader, helper = house.daemons
            files, at = house.new_task("sync", "time-interval"), an_hour_ago()
            selected = house.new_task("sync", "leader-selected")
            await start(leader, helper)
            client = await stack.enter_async_context(Client(files.client, patience=Patience(1)))
            await client.upload(range(5), time=at)
            assert await collect(files, at) == (5, 10)
            await client.upload(range(5), time=at + PRECISION)
            await upload(selected, at, *range(5))
            await aggregated(leader, 15)
            await stop(helper)
            await asked_for_a_share(leader, files, at + PRECISION)
            await client.upload(range(5), time=at + 2 * PRECISION)
            await leader.logged("job_sent", 4)
            await stop(leader)
            await leader.start(dying.__file__, "after", "commits.uploads.store_uploads")
            with pytest.raises(UploadFailed):
                await client.upload(range(5), time=at + 3 * PRECISION)
            assert await leader.ended() == -9

            for each in (files, selected):
                for daemon in house.daemons:
                    await expires(daemon, each)
            await dies(leader, moment, ["commits.leader_jobs.count_send"])
            for daemon, deaths in ((leader, LEADERS_GARBAGE), (helper, HELPERS_GARBAGE)):
                with daemon.config.open("a") as file:
                    file.write(OFTEN)
                await dies(daemon, moment, deaths)
                so_far = sum(line["event"] == "garbage_collected" for line in daemon.records())
                await start(daemon)
                if moment == "before":
                    await daemon.logged("garbage_collected", so_far + 1)
                await stop(daemon)
            assert left(leader) == {"collection_jobs": 1}, "its Collector is still to be told"
            assert left(helper) == {}
            assert counters(leader) == {
                "upload_accepted": 25,
                "aggregate_finished": 15,
                "aggregate_lost": 5,
                "aggregate_report_dropped": 5,
                "collection_expired": 1,
                "contribution_dropped": 5,
            }
            assert counters(helper) == {"aggregate_finished": 15, "contribution_dropped": 10}


@MOMENTS
@pytest.mark.parametrize("ended_by", ["commits.leader_jobs.expire_job", "gc.pace.expire_jobs"])
async def test_d6_a_job_that_was_sent_is_lost_once_whoever_ends_it(
    tmp_path: Path, moment: str, ended_by: str
) -> None:
    """One that is polled ends with its next step; one of a disabled task, which has none, by the
    garbage collector.
    """
    by_its_step = ended_by.startswith("commits")
    with trio.fail_after(SECONDS):
        async with open_house(tmp_path) as house:
            leader, helper = house.daemons
            files, at = house.new_task("sync", "time-interval"), an_hour_ago()
            await send_a_job(leader, helper, files, at)
            await expires(leader, files)
            if by_its_step:
                leader.change(
                    "UPDATE aggregation_jobs SET state = 'polling', location = 'http://[::1]:1/' "
                    "WHERE state = 'stored'"
                )
            else:
                task_id = b64url_encode(files.client.task_id)
                assert await typed(leader, "task", "disable", "--", task_id) == (0, "")
                with leader.config.open("a") as file:
                    file.write(OFTEN)
            await dies(leader, moment, [ended_by])
            await start(leader)
            if moment == "before":
                await leader.logged("job_expired" if by_its_step else "jobs_expired")
            await stop(leader)
            assert counters(leader) == {
                "upload_accepted": 10,
                "aggregate_finished": 5,
                "aggregate_lost": 5,
            }
