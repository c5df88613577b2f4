"""``dapd.collector`` against a scripted Leader that encrypts real aggregate shares."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import UTC, date, datetime
from pathlib import Path

import pytest
import trio
from trio.testing import MockClock

from dapd.collector import CollectionFailed, Collector, Query, Result, read_collector_task
from dapd.crypto import hpke_seal
from dapd.errors import UsageError
from dapd.http import Patience
from dapd.messages import collection
from dapd.messages.collection import AggregateShareAad, CollectionJobReq, CollectionJobResp
from dapd.messages.common import BatchMode, HpkeCiphertext, Interval, MediaType, Role
from dapd.taskfile import CollectorTask, TaskFiles, write_task_files
from dapd.vdaf import make_vdaf, merge
from tests.raw_http import Request, answer
from tests.scripted_aggregators import beyond_loopback, make_task
from tests.scripted_server import ScriptedServer

QUICK = Patience(attempts=3, minimum=0.001, maximum=0.001)
COUNTS = [3, 0, 1, 6]
HOUR = Query.interval(3600, 3600)
IN_HOUR = Interval(40, 2)
URN = "urn:ietf:params:ppm:dap:error:"


@dataclass(frozen=True)
class Batch:
    """What the scripted Leader makes of any query; the tests bend it."""

    count: int = sum(COUNTS)
    interval: Interval = IN_HOUR
    config_id: int | None = None
    info: bytes = b"dap-18 aggregate share"
    share: bytes | None = None

    def answer(self, task: CollectorTask, body: bytes) -> bytes:
        request = CollectionJobReq.decode(body)
        aad = AggregateShareAad(task.task_id, task.configuration, request).encode()
        vdaf = make_vdaf(task.configuration.vdaf)
        leader = b"".join(count.to_bytes(16, "little") for count in COUNTS)

        def sealed(role: Role, share: bytes) -> HpkeCiphertext:
            config = task.collector_hpke_config
            enc, payload = hpke_seal(config.as_tuple, self.info + bytes([role, 0]), aad, share)
            return HpkeCiphertext(self.config_id or config.id, enc, payload)

        response = CollectionJobResp(
            self.count,
            self.interval,
            sealed(Role.LEADER, leader if self.share is None else self.share),
            sealed(Role.HELPER, merge(vdaf, [])),
        )
        return answer(
            200,
            response.encode(),
            Content_Type=MediaType.COLLECTION_JOB_RESP,
            Location="collection_jobs/j",
        )


async def leader(
    nursery: trio.Nursery, script: Callable[[Request, TaskFiles], bytes], **keys: object
) -> tuple[ScriptedServer, TaskFiles]:
    peer = ScriptedServer(lambda request: script(request, files))
    files = make_task(await peer.serve(nursery), **keys)
    return peer, files


def serving(batch: Batch) -> Callable[[Request, TaskFiles], bytes]:
    return lambda request, files: (
        answer(200) if request.method == "DELETE" else batch.answer(files.collector, request.body)
    )


async def collected(files: TaskFiles, query: Query) -> Result:
    async with (
        Collector(files.collector, patience=QUICK) as collector,
        collector.collect(query) as result,
    ):
        return result


async def test_a_result_is_decrypted_and_put_together(nursery: trio.Nursery) -> None:
    """The query counts time precisions on the wire, the result seconds (C7)."""
    peer, files = await leader(nursery, serving(Batch()))
    assert await collected(files, HOUR) == Result(COUNTS, 10, 4000, 200)
    [request] = peer.requests
    assert request.target.startswith("/leader/tasks/")
    assert request.headers["authorization"] == f"Bearer {files.collector.collector_auth_token}"
    wanted = CollectionJobReq(collection.Query(Interval(36, 36)))
    assert CollectionJobReq.decode(request.body) == wanted


async def test_the_job_is_polled_by_retry_after(
    nursery: trio.Nursery, autojump_clock: MockClock
) -> None:
    """A lost answer to a poll is asked for again; the Location says where."""
    body = b""
    polls = iter(["wait", "lost", "wait", "ready"])

    def script(request: Request, files: TaskFiles) -> bytes:
        nonlocal body
        if request.method == "POST":
            body = request.body
            return answer(200, Location="/moved/job", Retry_After="100")
        match next(polls):
            case "wait":
                return answer(200, Retry_After="50")
            case "lost":
                return b""
            case _:
                return Batch().answer(files.collector, body)

    peer, files = await leader(nursery, script)
    started = trio.current_time()
    assert (await collected(files, HOUR)).value == COUNTS
    assert 200 <= trio.current_time() - started < 201
    assert [r.target for r in peer.requests[1:]] == ["/moved/job"] * 4


async def test_d4_a_lost_answer_to_the_creation_is_asked_for_with_the_same_bytes(
    nursery: trio.Nursery,
) -> None:
    """Creation is idempotent by content, so the retry finds the same job."""
    lost = [b""]
    serve = serving(Batch())
    peer, files = await leader(nursery, lambda r, f: lost.pop() if lost else serve(r, f))
    await collected(files, HOUR)
    first, second = peer.requests
    assert first.body == second.body


async def test_a8_a_leader_selected_batch_is_released_when_the_block_ends(
    nursery: trio.Nursery,
) -> None:
    """The DELETE names the Location of the job, and comes after the block."""
    peer, files = await leader(nursery, serving(Batch()), batch_mode="leader-selected")
    async with (
        Collector(files.collector) as collector,
        collector.collect(Query.next_batch()) as result,
    ):
        assert result.value == COUNTS
        assert [r.method for r in peer.requests] == ["POST"]
    assert [r.method for r in peer.requests] == ["POST", "DELETE"]
    assert peer.requests[1].target.endswith("/collection_jobs/j")


async def test_a8_a_batch_is_kept_when_the_block_fails(nursery: trio.Nursery) -> None:
    """A program that dies with the result in its hands gets the same batch again."""
    peer, files = await leader(nursery, serving(Batch()), batch_mode="leader-selected")
    async with Collector(files.collector) as collector:
        with pytest.raises(ZeroDivisionError):
            async with collector.collect(Query.next_batch()):
                raise ZeroDivisionError
    assert [r.method for r in peer.requests] == ["POST"]


async def test_a8_a_time_interval_job_is_never_deleted(nursery: trio.Nursery) -> None:
    """Its identity is its interval: asking again gives the same result, for ever."""
    peer, files = await leader(nursery, serving(Batch()))
    await collected(files, HOUR)
    assert [r.method for r in peer.requests] == ["POST"]


async def test_a8_a_release_that_fails_says_what_comes_next(nursery: trio.Nursery) -> None:
    """The result is complete, but the next query gives the same batch again."""
    serve = serving(Batch())
    _, files = await leader(
        nursery,
        lambda r, f: answer(500) if r.method == "DELETE" else serve(r, f),
        batch_mode="leader-selected",
    )
    with pytest.raises(CollectionFailed, match="the same batch again"):
        await collected(files, Query.next_batch())


async def test_a8_a_job_whose_location_leads_elsewhere_is_not_released(
    nursery: trio.Nursery,
) -> None:
    """The result is complete all the same; the error says what the next query returns."""
    serve = serving(Batch())
    peer, files = await leader(
        nursery,
        lambda r, f: serve(r, f).replace(b"collection_jobs/j", b"http://inside:8080/job"),
        batch_mode="leader-selected",
    )
    results = []
    with pytest.raises(CollectionFailed, match=r"http://inside:8080/job.* the same batch again"):
        async with (
            Collector(files.collector) as collector,
            collector.collect(Query.next_batch()) as result,
        ):
            results.append(result.value)
    assert results == [COUNTS]
    assert [r.method for r in peer.requests] == ["POST"]


async def test_a8_a_job_that_is_gone_is_released(nursery: trio.Nursery) -> None:
    """The first DELETE's answer was lost."""
    serve = serving(Batch())
    replies = iter([b"", answer(404)])
    peer, files = await leader(
        nursery,
        lambda r, f: next(replies) if r.method == "DELETE" else serve(r, f),
        batch_mode="leader-selected",
    )
    await collected(files, Query.next_batch())
    assert [r.method for r in peer.requests] == ["POST", "DELETE", "DELETE"]


@pytest.mark.parametrize(
    ("batch", "message"),
    [
        (Batch(count=1), r"fewer reports \(1\) than the task's minimum \(2\)"),
        (Batch(interval=Interval(35, 1)), "outside the query"),
        (Batch(interval=Interval(71, 2)), "outside the query"),
        (Batch(interval=Interval(40, 0)), "outside the query"),
        (Batch(config_id=77), "the Leader's aggregate share is encrypted to HPKE config 77"),
        (Batch(info=b"dap-17 aggregate share"), "the Leader's aggregate share can't be decrypted"),
        (Batch(share=bytes(15)), "don't fit the VDAF"),
    ],
)
async def test_a_result_that_cannot_be_true_is_refused(
    nursery: trio.Nursery, batch: Batch, message: str
) -> None:
    """Count and interval are checked before anything is decrypted."""
    _, files = await leader(nursery, serving(batch))
    with pytest.raises(CollectionFailed, match=message):
        await collected(files, HOUR)


@pytest.mark.parametrize(
    ("reply", "message", "type_"),
    [
        (
            answer(400, f'{{"type": "{URN}batchOverlap"}}'.encode()),
            "collected before",
            "batchOverlap",
        ),
        (
            answer(400, f'{{"type": "{URN}batchInvalid", "detail": "expired"}}'.encode()),
            "batchInvalid, expired; ask for an interval",
            "batchInvalid",
        ),
        (answer(401), "doesn't accept collector_auth_token", None),
        (answer(404, b"nothing here"), "HTTP 404, nothing here", None),
        (answer(502), "no answer from the Leader: HTTP 502; run the same query again", None),
        (answer(200, b"x", Content_Type="text/html"), "no answer from the Leader", None),
        (
            answer(200, b"x", Content_Type=MediaType.COLLECTION_JOB_RESP),
            "the Leader's CollectionJobResp",
            None,
        ),
    ],
)
async def test_a_failure_says_what_to_do(
    nursery: trio.Nursery, reply: bytes, message: str, type_: str | None
) -> None:
    """The draft's error type is kept for programs."""
    _, files = await leader(nursery, lambda *_: reply)
    with pytest.raises(CollectionFailed, match=message) as error:
        await collected(files, HOUR)
    assert error.value.type == type_


@pytest.mark.parametrize(
    ("start", "at"),
    [
        (7200, 72),
        ("7200", 72),
        ("1970-01-01T02:00Z", 72),
        ("1970-01-01T03:00:00+01:00", 72),
        ("1970-01-02", 864),
        (date(1970, 1, 2), 864),
        (datetime(1970, 1, 1, 2, tzinfo=UTC), 72),
    ],
)
def test_c7_an_interval_starts_at_seconds_or_an_iso_time(start: int | str | date, at: int) -> None:
    """A date alone is its midnight in UTC."""
    configuration = make_task("http://127.0.0.1:1").collector.configuration
    request = Query.interval(start, 100).request(configuration)
    assert request == CollectionJobReq(collection.Query(Interval(at, 1)))


@pytest.mark.parametrize(
    ("query", "message"),
    [
        (Query.interval(50, 100), "must be multiples of time_precision, 100"),
        (Query.interval(100, 150), "must be multiples"),
        (Query.interval(100, 0), "not an interval"),
        (Query.interval(100, "an hour"), "not an interval"),
        (Query.interval(-100, 100), "not an interval"),
        (Query.interval(2**64 * 100, 100), "shorten it"),
        (Query.interval("yesterday", 100), "the start must be"),
        (Query.interval("1970-01-01T02:00", 100), "a time with a zone"),
        (Query.interval(datetime(1970, 1, 1), 100), "a time with a zone"),  # noqa: DTZ001 - no zone
        (Query.next_batch(), "query an interval"),
    ],
)
async def test_c7_a_query_that_does_not_fit_the_task_is_refused_here(
    query: Query, message: str
) -> None:
    """The Leader would only say batchInvalid."""
    configuration = make_task("http://127.0.0.1:1").collector.configuration
    with pytest.raises(ValueError, match=message):
        query.request(configuration)
    selected = replace(configuration, batch_mode=BatchMode.LEADER_SELECTED)
    with pytest.raises(ValueError, match="query the next batch"):
        HOUR.request(selected)


async def test_b7_the_token_is_not_sent_over_http_beyond_loopback(nursery: trio.Nursery) -> None:
    """Unless permitted. Where the Helper is doesn't matter: the Collector never talks to it."""
    peer, files = await leader(
        nursery, serving(Batch()), helper_aggregator_endpoint="http://helper.example/"
    )
    await collected(files, HOUR)
    files = make_task(peer.url, leader_aggregator_endpoint=beyond_loopback(peer.url))
    with pytest.raises(UsageError, match=r"^leader_aggr.* https://, or .*allow_insecure_http"):
        Collector(files.collector)
    assert len(peer.requests) == 1


def test_another_partys_file_is_refused(tmp_path: Path) -> None:
    """The Collector's secrets stand in collector.toml alone."""
    files = make_task("http://127.0.0.1:1")
    write_task_files(tmp_path, files)
    assert read_collector_task(tmp_path / "collector.toml") == files.collector
    with pytest.raises(UsageError, match=r"use collector\.toml"):
        read_collector_task(tmp_path / "client.toml")
