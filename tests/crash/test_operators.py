"""SIGKILL around each COMMIT of what operators and peers end or bring back: D1, A6.

A restored file is quarantined and reopened, a refusal is final, a job is given up, a task or a
share deleted: whatever dies in between, it is done once, and whoever did it is told so.
"""

from __future__ import annotations

from pathlib import Path

import trio

from dapd.http import DapHttp, Ready, Refused, Unknown
from dapd.messages.common import MediaType, b64url_encode
from tests.crash import dying
from tests.crash.load import PRECISION, open_house
from tests.crash.steps import (
    MOMENTS,
    OFTEN,
    aggregated,
    an_hour_ago,
    collect,
    counters,
    dies,
    dying_command,
    left,
    refused,
    send_a_job,
    stop,
    typed,
    typed_again,
    upload,
)
from tests.processes.daemons import QUICK, SECONDS, start


@MOMENTS
async def test_d1_a_restored_file_is_quarantined_refused_and_reopened_whoever_dies(
    tmp_path: Path, moment: str
) -> None:
    """The Helper's file is put back; the Leader's collection fails once, its batch opens again; and
    what the Helper's operator has accepted is collected, exactly.
    """
    with trio.fail_after(SECONDS):
        async with open_house(tmp_path) as house:
            leader, helper = house.daemons
            files, at = house.new_task("sync", "time-interval"), an_hour_ago()
            await start(leader, helper)
            await upload(files, at, 1, 2, 3, 4, 5)
            await aggregated(leader, 5)
            await stop(helper)
            older = helper.database.read_bytes()
            await start(helper)
            await upload(files, at + PRECISION, 6, 7, 8, 9, 10)
            await aggregated(leader, 10)
            await stop(leader, helper)
            helper.database.write_bytes(older)
            await dies(helper, moment, ["commits.restore.quarantine"])
            await start(helper)
            await helper.logged("restored_database")

            async with trio.open_nursery() as nursery:
                nursery.start_soon(refused, files, at, "batchInvalid")
                await dies(leader, moment, ["commits.collections.refuse_collection"])
                await start(leader)
            task = f"--task={b64url_encode(files.client.task_id)}"
            accept = ("restore", "accept", task, "--from", at, "--until", at + PRECISION)
            await stop(helper)
            await helper.start(dying.__file__, moment, "admin.restore.accept")
            status, _ = await typed(helper, *accept)
            assert status == 1
            assert await helper.ended() == -9
            await start(helper)
            await typed_again(helper, moment, "nothing of that is quarantined", *accept)
            assert await collect(files, at) == (5, 15)
            await refused(files, at + PRECISION, "batchInvalid")
            await stop(leader, helper)


@MOMENTS
async def test_d1_what_an_operator_does_is_done_once_whatever_dies(
    tmp_path: Path, moment: str
) -> None:
    """A job is given up, then its task is deleted and purged; each again after the kill."""
    with trio.fail_after(SECONDS):
        async with open_house(tmp_path, settings=QUICK + OFTEN) as house:
            leader, helper = house.daemons
            files, at = house.new_task("sync", "time-interval"), an_hour_ago()
            await send_a_job(leader, helper, files, at)
            await leader.start(dying.__file__, moment, "admin.jobs._abandon")
            abandon = ("jobs", "abandon", "a2", "--confirm", "a2")
            assert (await typed(leader, *abandon))[0] == 1
            assert await leader.ended() == -9
            await start(leader)
            await typed_again(leader, moment, "has ended: lost", *abandon)
            await stop(leader)
            expected = {"upload_accepted": 10, "aggregate_finished": 5, "aggregate_lost": 5}
            assert counters(leader) == expected

            task_id = b64url_encode(files.client.task_id)
            delete = ("task", "delete", "--discard", "--", task_id)
            await dying_command(leader, moment, "commits.tasks.delete_task", *delete)
            await typed_again(leader, moment, f"task {task_id} is deleted", *delete)
            await dies(leader, moment, ["gc.loop._purge"])
            await start(leader)
            if moment == "before":
                await leader.logged("task_purged")
            await stop(leader)
            assert leader.read("SELECT state FROM tasks") == [("purged",)]
            expected["contribution_dropped"] = 5
            assert (left(leader), counters(leader)) == ({}, expected)


@MOMENTS
async def test_a6_a_deleted_aggregate_share_stays_deleted_and_its_batch_collected(
    tmp_path: Path, moment: str
) -> None:
    """A Leader that heard nothing deletes it again; nobody gets the share a second time."""
    with trio.fail_after(SECONDS):
        async with open_house(tmp_path) as house, DapHttp() as http:
            leader, helper = house.daemons
            files, at = house.new_task("sync", "time-interval"), an_hour_ago()
            await start(leader, helper)
            await upload(files, at, *range(5))
            assert await collect(files, at) == (5, 10)
            await stop(leader, helper)
            ((share_id,),) = helper.read("SELECT id FROM aggregate_share_jobs")
            path = f"tasks/{b64url_encode(files.client.task_id)}/aggregate_shares"
            url = f"{helper.wire.url}{path}/{b64url_encode(share_id)}"
            token = files.leader.aggregator_auth_token
            await helper.start(
                dying.__file__, moment, "commits.aggregate_share.delete_aggregate_share"
            )
            assert isinstance(await http.delete(url, token), Unknown)
            assert await helper.ended() == -9
            await start(helper)
            again = await http.delete(url, token)
            assert isinstance(again, Ready if moment == "before" else Refused)
            gone = await http.poll(url, token, MediaType.AGGREGATE_SHARE)
            assert isinstance(gone, Refused)
            assert gone.status == 404
            await stop(helper)
            assert helper.read("SELECT state FROM collected") == [("collected",)]


@MOMENTS
async def test_d4_what_the_helper_refuses_for_long_is_given_up_once_whoever_dies(
    tmp_path: Path, moment: str
) -> None:
    """A collection, which the same query then goes on with, exactly; and a job, which is lost."""
    impatient = "give_up_after = 0.5\n"
    settings = f"{QUICK}{impatient}\n[collection]\n{impatient}"
    with trio.fail_after(SECONDS):
        async with open_house(tmp_path, settings=settings) as house:
            leader, helper = house.daemons
            files, at = house.new_task("sync", "time-interval"), an_hour_ago()
            task_id = b64url_encode(files.client.task_id)
            await start(leader, helper)
            await upload(files, at, *range(5))
            await aggregated(leader, 5)
            await stop(leader)
            assert await typed(helper, "task", "disable", "--", task_id) == (0, "")
            await helper.logged("task_state_changed")
            async with trio.open_nursery() as nursery:
                nursery.start_soon(refused, files, at, "unrecognizedTask")
                await dies(leader, moment, ["commits.collections.give_up_collection"])
                await start(leader)
            assert await typed(helper, "task", "enable", "--", task_id) == (0, "")
            assert await collect(files, at) == (5, 10)

            assert await typed(helper, "task", "disable", "--", task_id) == (0, "")
            await helper.logged("task_state_changed", 3)
            await stop(leader)
            await leader.start(dying.__file__, moment, "commits.leader_jobs.give_up_refused_job")
            await upload(files, at + PRECISION, *range(5))
            assert await leader.ended() == -9
            await start(leader)
            if moment == "before":
                await leader.logged("job_given_up")
            await stop(leader, helper)
            counted = counters(leader)
            assert counted.pop("collection_given_up") >= 1
            assert counted == {
                "upload_accepted": 10,
                "aggregate_finished": 5,
                "aggregate_lost": 5,
            }
