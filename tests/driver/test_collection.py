"""Steps of a Leader's collection job against a scripted Helper on a real socket."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio

from dapd.admin import peers
from dapd.admin.peers import PeerRequest
from dapd.commits.collections import delete_collection
from dapd.datastore import leases
from dapd.datastore.collections import CollectionJob
from dapd.driver import collection
from dapd.driver.step import Step
from dapd.messages.common import BatchMode, MediaType
from dapd.protocol.batches import time_bucket
from dapd.runtime.context import Context
from tests.clock import TIME
from tests.database_pair import (
    NEXT_BATCH,
    QUERY,
    DatabasePair,
    interval_query,
    leader_context,
    open_databases,
)
from tests.raw_http import Request, answer
from tests.scripted_server import ScriptedServer
from tests.task_pair import AGGREGATOR_TOKEN

Script = Callable[[Request], bytes]
PROBLEM = b'{"type": "urn:ietf:params:ppm:dap:error:%s", "detail": "because"}'


class Scene:
    """A Leader with three aggregated reports, and a Helper whose answers are scripted."""

    def __init__(self, who: DatabasePair, context: Context, peer: ScriptedServer) -> None:
        self.who = who
        self.context = context
        self.peer = peer
        self.slots = trio.CapacityLimiter(1)
        self.answers: list[Script | bytes] = []

    async def step(self, job: CollectionJob) -> CollectionJob:
        """Lease and step once, with the permit that the dispatcher would take."""
        lease = self.who.lease(job)
        at = self.context.peers.at(self.who.leader.configuration.helper_aggregator_endpoint)
        step = Step(lease, self.who.leader, self.slots, at)
        if lease.due.state != "waiting":
            assert step.try_permit()
        await collection.run(self.context, step)
        if step.has_permit:
            at.release()
        assert self.slots.borrowed_tokens == 0
        return self.who.job(job)

    def run_at(self, job: CollectionJob) -> float:
        """In how many seconds the job is due; it must not be leased."""
        row = self.who.store.read_sync(
            lambda tx: tx.one(
                "SELECT run_at, lease_token FROM collection_jobs WHERE collection_pk = :pk",
                pk=job.pk,
            )
        )
        assert row is not None
        assert row[1] is None
        run_at: int = row[0]
        return (run_at - self.who.clock.now()) / 1000


@asynccontextmanager
async def scene(
    path: Path, *answers: Script | bytes, mode: BatchMode = BatchMode.TIME_INTERVAL
) -> AsyncIterator[Scene]:
    """A scene whose Helper gives ``answers`` in turn, and then its real one."""
    queue = list(answers)
    async with trio.open_nursery() as nursery:

        def script(request: Request) -> bytes:
            given = queue.pop(0) if queue else it.who.helper_answer
            return given if isinstance(given, bytes) else given(request)

        peer = ScriptedServer(script)
        url = await peer.serve(nursery)
        async with (
            open_databases(path, mode=mode, helper_url=url) as who,
            leader_context(who) as context,
        ):
            it = Scene(who, context, peer)
            it.answers = queue
            yield it
        nursery.cancel_scope.cancel()


def refusal(status: int, error: str) -> bytes:
    return answer(status, PROBLEM % error.encode(), Content_Type="application/problem+json")


async def test_i3_a_complete_batch_is_frozen_asked_for_and_finished_in_one_step(
    tmp_path: Path,
) -> None:
    """The Collector gets the exact result; C7: the interval is [min, max + 1)."""
    async with scene(tmp_path) as it:
        it.who.aggregate([1, 0, 1])
        it.who.aggregate([1, 1], time=TIME + 2)
        request = interval_query(TIME - 1, 10)
        job = await it.step(it.who.query(request))
        assert job.state == "finished"
        assert job.response is not None
        resp, result = it.who.result(request, job.response)
        assert (resp.report_count, result) == (5, 4)
        assert (resp.interval.start, resp.interval.duration) == (TIME, 3)
        sent = it.peer.requests[0]
        assert (sent.method, sent.headers["authorization"]) == (
            "POST",
            f"Bearer {AGGREGATOR_TOKEN}",
        )
        assert sent.target == f"/tasks/{it.who.leader.id_text}/aggregate_shares"
        assert sent.headers["content-type"] == MediaType.AGGREGATE_SHARE_REQ
        assert it.who.state_of(time_bucket(TIME + 8)) == "collected"
        assert job.leader_share is None


async def test_c6_a_leader_selected_batch_is_collected(tmp_path: Path) -> None:
    """The Leader asks for it by its batch id, which the Collector never sends."""
    async with scene(tmp_path, mode=BatchMode.LEADER_SELECTED) as it:
        it.who.aggregate([1, 0, 1], batch_id=it.who.open_batch())
        job = await it.step(it.who.query(NEXT_BATCH))
        assert job.response is not None
        assert it.who.result(NEXT_BATCH, job.response)[1] == 2


async def test_i5_a_helper_that_is_processing_is_polled_without_a_slot(tmp_path: Path) -> None:
    """The Leader stores the Location and polls it after Retry-After; meanwhile the job isn't
    leased.
    """
    later = answer(Location="shares/1", Retry_After="7")
    polled: list[Request] = []

    def ready(request: Request) -> bytes:
        polled.append(request)
        return it.who.helper_answer(it.peer.requests[0])

    async with scene(tmp_path, later, later, ready) as it:
        it.who.aggregate([1, 0, 1])
        job = await it.step(it.who.query(QUERY))
        assert (job.state, it.run_at(job)) == ("polling", 7)
        assert job.location == f"{it.peer.url}/tasks/{it.who.leader.id_text}/shares/1"
        it.who.clock.advance(7)
        job = await it.step(job)
        assert (job.state, it.run_at(job)) == ("polling", 7)
        it.who.clock.advance(7)
        job = await it.step(job)
        assert job.state == "finished"
        assert [(each.method, each.body) for each in polled] == [("GET", b"")]


async def test_i4_an_unknown_outcome_is_retried_with_identical_bytes(tmp_path: Path) -> None:
    """If the connection breaks after the Helper's commit, the same request finds the same share."""

    def committed_and_cut(request: Request) -> bytes:
        it.who.helper_answer(request)
        return b""

    async with scene(tmp_path, committed_and_cut) as it:
        it.who.aggregate([1, 0, 1])
        job = await it.step(it.who.query(QUERY))
        assert (job.state, job.sends, it.run_at(job)) == ("frozen", 1, 1)
        it.who.clock.advance(1)
        job = await it.step(job)
        assert (job.state, job.response is not None) == ("finished", True)
        first, second = it.peer.requests
        assert first.body == second.body


@pytest.mark.parametrize(
    ("unknown", "first_wait"),
    [
        (answer(500), 1),
        (answer(200, b"x", Content_Type="text/html"), 1),
        (answer(200), 1),
        (answer(404), 16),
        (refusal(404, "unrecognizedTask"), 16),
        (refusal(400, "invalidAggregationParameter"), 16),
        (answer(401), 16),
        (answer(200, b"x", Content_Type=MediaType.AGGREGATE_SHARE.value), 16),
    ],
)
async def test_d4_everything_else_is_unknown_and_backs_off(
    tmp_path: Path, unknown: bytes, first_wait: int
) -> None:
    """The batch stays closed, and the Leader sends the bytes again after waits that double; they
    start long if only a changed configuration can help.
    """
    async with scene(tmp_path, unknown, unknown) as it:
        it.who.aggregate([1, 0, 1])
        job = await it.step(it.who.query(QUERY))
        for wait in (first_wait, 2 * first_wait):
            assert (job.state, it.run_at(job)) == ("frozen", wait)
            assert it.who.state_of(time_bucket(TIME)) == "closed"
            it.who.clock.advance(wait)
            job = await it.step(job)
        assert job.state == "finished"
        assert len({each.body for each in it.peer.requests}) == 1


async def test_e1_a_busy_helper_is_asked_again_when_it_says(tmp_path: Path) -> None:
    """The Leader obeys a 503's Retry-After, and the next failure backs off from the start."""
    async with scene(tmp_path, answer(503, Retry_After="5"), answer(500)) as it:
        it.who.aggregate([1, 0, 1])
        job = await it.step(it.who.query(QUERY))
        assert it.run_at(job) == 5
        it.who.clock.advance(5)
        job = await it.step(job)
        assert it.run_at(job) == 1


async def test_d4_a_location_that_is_gone_is_asked_for_again(tmp_path: Path) -> None:
    """If the Helper has lost the resource, the stored bytes create it again."""
    later = answer(Location="/shares/1", Retry_After="1")
    async with scene(tmp_path, later, answer(404)) as it:
        it.who.aggregate([1, 0, 1])
        job = await it.step(it.who.query(QUERY))
        it.who.clock.advance(1)
        job = await it.step(job)
        assert (job.state, job.location) == ("frozen", None)
        it.who.clock.advance(60)
        assert (await it.step(job)).state == "finished"
        assert [each.method for each in it.peer.requests] == ["POST", "GET", "POST"]


@pytest.mark.parametrize(
    ("error", "state"),
    [
        ("invalidMessage", None),
        ("batchInvalid", None),
        ("invalidBatchSize", None),
        ("unsupportedExtension", None),
        ("invalidExtension", None),
        ("batchMismatch", None),
        ("batchOverlap", "collected"),
    ],
)
async def test_d4_a_refusal_of_the_share_is_final_at_any_send(
    tmp_path: Path, error: str, state: str | None
) -> None:
    """The job fails with the Helper's error."""
    async with scene(tmp_path, answer(500), refusal(400, error)) as it:
        it.who.aggregate([1, 0, 1])
        job = await it.step(it.who.query(QUERY))
        it.who.clock.advance(1)
        job = await it.step(job)
        assert (job.state, job.error, job.detail, job.sends) == ("failed", error, "because", 2)
        assert it.who.state_of(time_bucket(TIME)) == state


async def test_a6_a_job_deleted_while_it_is_asked_for_stays_deleted(tmp_path: Path) -> None:
    """The Helper's answer comes too late to finish the job."""

    def deleted_meanwhile(request: Request) -> bytes:
        it.who.store.run_sync(delete_collection, it.who.leader, made.id, it.who.clock.instant())
        return it.who.helper_answer(request)

    async with scene(tmp_path, deleted_meanwhile) as it:
        it.who.aggregate([1, 0, 1])
        made = it.who.query(QUERY)
        job = await it.step(made)
        assert (job.state, job.response) == ("deleted", None)
        assert it.who.state_of(time_bucket(TIME)) == "collected"


async def test_c3_fixing_the_cut_wakes_the_creator(tmp_path: Path) -> None:
    """The creator packs the waiting reports at once, not when its timer ends."""
    async with scene(tmp_path) as it:
        it.who.upload(3)
        job = await it.step(it.who.query(QUERY))
        assert (job.state, job.cut) == ("waiting", it.who.seq)
        with trio.fail_after(30):
            await it.context.chunks.wait(60)
        assert it.peer.requests == []


HOUR = 3600
NOBODY = refusal(404, "unrecognizedTask")


def forbidden(_: Request) -> bytes:
    return answer(403)


async def refused_for_an_hour(it: Scene, job: CollectionJob) -> CollectionJob:
    """Step the job whenever it is due; the Helper refuses it all that time. The job in the end."""
    for _ in range(100):
        job = await it.step(job)
        if job.state == "failed":
            return job
        it.who.clock.advance(it.run_at(job))
    raise AssertionError("it is never given up")


@pytest.mark.parametrize(
    ("answered", "error", "told"),
    [
        (NOBODY, "unrecognizedTask", "HTTP 404 unrecognizedTask: because"),
        (refusal(400, "ownError"), "ownError", "HTTP 400 ownError: because"),
        (answer(403, b"no"), None, "HTTP 403: no"),
        (answer(200, b"x", Content_Type="text/html"), None, "text/html"),
        (answer(200, b"x", Content_Type=MediaType.AGGREGATE_SHARE.value), None, "can't be used"),
    ],
)
async def test_d4_a_collection_that_is_refused_for_an_hour_fails_with_the_helpers_error(
    tmp_path: Path, answered: bytes, error: str | None, told: str
) -> None:
    """Not earlier, and without a DELETE, which would end what the Helper may know of the request;
    it stays stored, with the share, and the batch stays closed.
    """
    async with scene(tmp_path, *[answered] * 100) as it:
        it.who.aggregate([1, 0, 1])
        began = it.who.clock.now()
        job = await refused_for_an_hour(it, it.who.query(QUERY))
        assert it.who.clock.now() - began == HOUR * 1000
        assert (job.error, "for 1 hour" in (job.detail or "")) == (error, True)
        assert told in (job.detail or "")
        assert {(each.method, each.body) for each in it.peer.requests} == {
            ("POST", job.share_request)
        }
        assert job.leader_share is not None
        assert it.who.state_of(time_bucket(TIME)) == "given_up"


@pytest.mark.parametrize("outage", [b"", answer(502), answer(503), answer(429), answer(408)])
async def test_d4_an_outage_of_61_minutes_fails_no_collection(
    tmp_path: Path, outage: bytes
) -> None:
    """Whatever the Helper said before it, and says at first after it."""
    answers = [NOBODY, *[outage] * 61, NOBODY]
    async with scene(tmp_path, *answers) as it:
        it.who.aggregate([1, 0, 1])
        job = await it.step(it.who.query(QUERY))
        while len(it.peer.requests) < len(answers):
            it.who.clock.advance(max(60, it.run_at(job)))
            job = await it.step(job)
            assert job.state == "frozen"
        it.who.clock.advance(it.run_at(job))
        assert (await it.step(job)).state == "finished"


async def test_d4_an_outage_that_only_another_job_sees_fails_no_collection(tmp_path: Path) -> None:
    """While a peer can't be reached, one job at a time probes it; the others learn nothing."""
    async with scene(tmp_path, NOBODY, *[b""] * 61, NOBODY, NOBODY) as it:
        it.who.aggregate([1, 0, 1])
        it.who.aggregate([1, 0, 1], time=TIME + 1)
        job, probing = it.who.query(QUERY), it.who.query(interval_query(TIME + 1, 1))
        job = await it.step(job)
        for _ in range(61):
            probing = await it.step(probing)
            it.who.clock.advance(max(60, it.run_at(probing)))
        for _ in range(2):
            job = await it.step(job)
            assert job.state == "frozen"
            it.who.clock.advance(it.run_at(job))
        assert (await it.step(job)).state == "finished"


async def test_d4_the_time_in_which_a_peer_is_paused_fails_no_collection(tmp_path: Path) -> None:
    """The Helper refuses before it and after it; nobody has asked it in between."""
    async with scene(tmp_path, *[NOBODY] * 3) as it:
        it.who.aggregate([1, 0, 1])
        job = await it.step(it.who.query(QUERY))
        peer = PeerRequest(it.who.leader.configuration.helper_aggregator_endpoint)
        await peers.pause(it.context, peer)
        it.who.clock.advance(2 * HOUR)
        await peers.resume(it.context, peer)
        for _ in range(2):
            job = await it.step(job)
            assert job.state == "frozen"
            it.who.clock.advance(it.run_at(job))
        assert (await it.step(job)).state == "finished"


async def test_d4_an_outage_in_another_year_excuses_no_refusal(tmp_path: Path) -> None:
    """An operator accepted a wrong clock and then the right one; the outage was in between."""
    years = 10 * 365 * 24 * HOUR
    async with scene(tmp_path, NOBODY, b"", *[NOBODY] * 100) as it:
        it.who.aggregate([1, 0, 1])
        job = await it.step(it.who.query(QUERY))
        for jump in (years, -years):
            it.who.clock.jump(jump)
            it.context.safe_clock.accept()
            if jump > 0:
                job = await it.step(job)
        it.who.clock.advance(1)
        it.who.store.run_sync(leases.make_due, "collection", job.pk, it.who.clock.now())
        began = it.who.clock.now()
        await refused_for_an_hour(it, job)
        assert it.who.clock.now() - began == HOUR * 1000


async def test_d4_a_jump_of_the_clock_fails_no_collection(tmp_path: Path) -> None:
    """The time of refusals is that of the safe clock, which doesn't follow the jump."""
    async with scene(tmp_path, *[NOBODY] * 3) as it:
        it.who.aggregate([1, 0, 1])
        job = await it.step(it.who.query(QUERY))
        for _ in range(2):
            it.who.clock.jump(10 * HOUR)
            job = await it.step(job)
            assert job.state == "frozen"
        it.who.clock.jump(HOUR)
        assert (await it.step(job)).state == "finished"


@pytest.mark.parametrize("mode", [BatchMode.TIME_INTERVAL, BatchMode.LEADER_SELECTED])
@pytest.mark.parametrize("committed", [True, False])
async def test_d4_an_identical_query_goes_on_with_a_collection_that_was_given_up(
    tmp_path: Path, mode: BatchMode, committed: bool
) -> None:
    """The new job has an id of its own, and sends the very bytes; the result is exact, also if the
    Helper had made the share at the first send, whose answer was lost.
    """

    def first(request: Request) -> bytes:
        if committed:
            it.who.helper_answer(request)
        return b""

    async with scene(tmp_path, first, *[forbidden] * 100, mode=mode) as it:
        selected = mode is BatchMode.LEADER_SELECTED
        request = NEXT_BATCH if selected else QUERY
        it.who.aggregate([1, 0, 1], batch_id=it.who.open_batch() if selected else None)
        failed = await refused_for_an_hour(it, it.who.query(request))
        it.answers.clear()
        job = it.who.query(request)
        assert (job.id != failed.id, job.state) == (True, "frozen")
        assert it.who.query(request).id == job.id
        assert it.who.state_of(job.lo) == "closed"
        job = await it.step(job)
        assert job.response is not None
        assert it.who.result(request, job.response)[1] == 2
        assert it.who.state_of(job.lo) == "collected"
        assert len({each.body for each in it.peer.requests}) == 1
        failed = it.who.job(failed)
        assert (failed.state, failed.leader_share, failed.share_request) == ("failed", None, None)


async def test_a8_the_next_query_resumes_the_leader_selected_batch_that_was_given_up(
    tmp_path: Path,
) -> None:
    """It comes before the batches after it, since its request is the same; nobody gets it twice."""
    async with scene(tmp_path, *[forbidden] * 200, mode=BatchMode.LEADER_SELECTED) as it:
        first, second = it.who.open_batch(), it.who.open_batch()
        it.who.aggregate([1, 0, 1], batch_id=first)
        it.who.aggregate([1, 1, 1], batch_id=second)
        failed = await refused_for_an_hour(it, it.who.query(NEXT_BATCH))
        resumed = it.who.query(NEXT_BATCH)
        again = await refused_for_an_hour(it, resumed)
        it.answers.clear()
        finished = await it.step(it.who.query(NEXT_BATCH))
        assert {failed.lo, again.lo, finished.lo} == {first}
        assert finished.response is not None
        assert it.who.result(NEXT_BATCH, finished.response)[1] == 2
        at = it.who.clock.instant()
        it.who.store.run_sync(delete_collection, it.who.leader, finished.id, at)
        following = await it.step(it.who.query(NEXT_BATCH))
        assert following.lo == second
