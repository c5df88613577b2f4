"""Steps of a Leader's aggregation job against a scripted Helper on a real socket."""

from __future__ import annotations

from pathlib import Path

import pytest
import structlog
import trio

from dapd.commits.leader_jobs import give_up_job
from dapd.config import Leader
from dapd.datastore import Tx, tasks
from dapd.driver import aggregation
from dapd.driver.dispatcher import Dispatcher
from dapd.driver.step import Step
from dapd.messages.aggregation import AggregationJobInitHead
from dapd.messages.common import BatchMode
from dapd.protocol.states import LeaderJobState
from dapd.protocol.task import TaskSettings, TaskState
from dapd.reports import ReportRules
from tests.clock import PRECISION, TIME, ManualClock
from tests.leader_harness import (
    LeaderHarness,
    Script,
    helper_response,
    open_leader,
    problem,
    ready,
)
from tests.raw_http import Request, answer
from tests.task_pair import TaskPair, task_pair

LOCATION = "/helper/somewhere"
FOREVER = 2**64 - 1
QUICK_EXPIRY = TaskSettings(report_expiry_age=PRECISION)


def honest(pair: TaskPair, request: Request) -> bytes:
    if request.method == "DELETE":
        return answer(204)
    return ready(helper_response(pair, request.body), Location=LOCATION)


async def test_a_job_is_sent_finished_and_deleted_in_one_step_a7(tmp_path: Path) -> None:
    """A7: the Leader DELETEs each job after committing its result, at the Location it was given."""
    task = task_pair()
    async with open_leader(tmp_path, task, honest) as house:
        await house.upload(5)
        await house.create()
        assert await house.step() == 1
        assert await house.states() == {"finished": 1}
        assert await house.aggregated() == 5
        assert await house.counters() == {"upload_accepted": 5, "aggregate_finished": 5}
        assert [r.method for r in house.helper.requests] == ["POST", "DELETE"]
        assert house.helper.requests[1].target == LOCATION
        assert await house.rows("SELECT * FROM job_bodies") == []
        assert await house.rows("SELECT * FROM chunk_rows") == []
        assert await house.rows("SELECT state FROM report_chunks") == [("decided",)]
        assert await house.rows("SELECT peer_accepted FROM tasks") == [(1,)]


async def test_i3_request_and_state_are_stored_before_the_first_send(tmp_path: Path) -> None:
    """I3: when the Helper reads the request, the database has these bytes; D4: and the count."""
    task = task_pair()
    seen: list[tuple[bytes, bytes, int]] = []
    house: LeaderHarness

    def script(pair: TaskPair, request: Request) -> bytes:
        if request.method == "POST":
            look = house.context.datastore.read_sync(
                lambda tx: tx.one(
                    "SELECT request, leader_state, sends FROM job_bodies JOIN aggregation_jobs "
                    "USING (job_pk)"
                )
            )
            assert look is not None
            seen.append((look[0], request.body, look[2]))
            assert look[1]
        return honest(pair, request)

    async with open_leader(tmp_path, task, script) as house:
        await house.upload(3)
        await house.create()
        await house.step()
    assert [(stored == sent, sends) for stored, sent, sends in seen] == [(True, 1)]


DISTURBANCES = {
    "no answer": b"",
    "a cut body": b"HTTP/1.1 200 X\r\nContent-Length: 100\r\n\r\nhalf",
    "500": answer(500),
    "503 without Retry-After": answer(503),
    "429": answer(429, Retry_After="1"),
    "a proxy's page": answer(200, b"<html>", Content_Type="text/html"),
    "a redirect": answer(307, Location="http://127.0.0.1:9/"),
    "401": answer(401),
    "404": answer(404),
    "unrecognizedTask": problem("unrecognizedTask", 404),
    "unsupportedExtension": problem("unsupportedExtension"),
    "a foreign Location": answer(201, Location="http://localhost:9/elsewhere"),
    "no Location": answer(201),
    "garbage": ready(b"garbage"),
}


@pytest.mark.parametrize("disturbance", DISTURBANCES.values(), ids=DISTURBANCES.keys())
async def test_i4_d4_an_unknown_outcome_sends_the_identical_bytes_again(
    tmp_path: Path, disturbance: bytes
) -> None:
    """I4, D4: after any answer that is not final, the stored bytes are sent again until the job
    finishes.
    """
    task = task_pair()
    replies = [disturbance, disturbance]

    def script(pair: TaskPair, request: Request) -> bytes:
        return replies.pop() if replies else honest(pair, request)

    async with open_leader(tmp_path, task, script) as house:
        await house.know_peer()
        await house.upload(3)
        await house.create()
        for _ in range(3):
            assert await house.step() == 1
            assert await house.step() == 0, "it waits in the datastore, not in a slot (I5)"
            house.later()
        posts = [r.body for r in house.helper.requests if r.method == "POST"]
        assert len(posts) == 3
        assert len(set(posts)) == 1
        assert await house.states() == {"finished": 1}
        assert await house.aggregated() == 3


async def test_b5_a_response_with_wrong_ids_is_retried_and_never_a_second_job(
    tmp_path: Path,
) -> None:
    """B5, D4: a response about other reports leaves unknown what the Helper has stored."""
    task = task_pair()
    first: list[bytes] = []

    def script(pair: TaskPair, request: Request) -> bytes:
        if request.method == "POST" and not first:
            first.append(request.body)
            good = helper_response(pair, request.body)
            return ready(bytes([good[0] ^ 1]) + good[1:], Location=LOCATION)
        return honest(pair, request)

    async with open_leader(tmp_path, task, script) as house:
        await house.know_peer()
        await house.upload(2)
        await house.create()
        await house.step()
        assert await house.states() == {"stored": 1}
        assert await house.aggregated() == 0
        house.later()
        await house.step()
        assert house.helper.requests[1].body == first[0]
        assert await house.states() == {"finished": 1}


async def test_a_poll_follows_the_location_with_step_and_then_finishes_a5(tmp_path: Path) -> None:
    """A5: an empty answer means processing; GET has step=0, DELETE none; D4: there is one send."""
    task = task_pair()
    body: list[bytes] = []

    def script(pair: TaskPair, request: Request) -> bytes:
        match request.method:
            case "POST":
                body.append(request.body)
                return answer(201, Location="job?step=0", Retry_After="7")
            case "GET" if len(house.helper.requests) < 4:
                return answer(200, Retry_After="7")
            case "GET":
                return ready(helper_response(pair, body[0]))
            case _:
                return answer(204)

    async with open_leader(tmp_path, task, script) as house:
        await house.upload(2)
        await house.create()
        await house.step()
        assert await house.rows("SELECT state, run_at, lease_token FROM aggregation_jobs") == [
            ("polling", house.clock.now() + 7000, None)
        ]
        for _ in range(3):
            house.later(7)
            await house.step()
        assert await house.states() == {"finished": 1}
        assert await house.rows("SELECT sends FROM aggregation_jobs") == [(1,)]
        root = f"/helper/tasks/{house.task.id_text}"
        assert [(r.method, r.target) for r in house.helper.requests] == [
            ("POST", f"{root}/aggregation_jobs"),
            *[("GET", f"{root}/job?step=0")] * 3,
            ("DELETE", f"{root}/job"),
        ]


async def test_a5_a_result_counts_whose_location_leads_elsewhere(tmp_path: Path) -> None:
    """A Helper behind a proxy sends its own address: no DELETE, no token, but a warning."""
    task = task_pair()

    def script(pair: TaskPair, request: Request) -> bytes:
        return ready(helper_response(pair, request.body), Location="http://inside:8080/job")

    async with open_leader(tmp_path, task, script) as house:
        with structlog.testing.capture_logs() as logs:
            for _ in range(2):
                await house.upload(3)
                await house.create()
                await house.step()
        assert await house.states() == {"finished": 2}
        assert await house.aggregated() == 6
        assert [r.method for r in house.helper.requests] == ["POST", "POST"]
        [line] = [entry for entry in logs if entry["event"] == "job_stays"]
        assert line["location"] == "http://inside:8080/job"
        assert house.task.configuration.helper_aggregator_endpoint in line["remedy"]


async def test_e1_busy_answers_follow_retry_after_and_do_not_grow_the_exponent(
    tmp_path: Path,
) -> None:
    """E1: the Leader obeys a 503's Retry-After, and doesn't count it as a failed attempt."""
    task = task_pair()
    limits = Leader(min_job_size=1, max_wait=0, retry_min=1, retry_max=600)
    async with open_leader(
        tmp_path, task, lambda _, __: answer(503, Retry_After="17"), config=limits
    ) as house:
        await house.upload(1)
        await house.create()
        for _ in range(3):
            await house.step()
            assert await house.rows("SELECT run_at, attempts FROM aggregation_jobs") == [
                (house.clock.now() + 17_000, 0)
            ]
            house.later(17)


async def test_e1_other_errors_back_off_exponentially(tmp_path: Path) -> None:
    """E1: the wait doubles with each unknown outcome, up to its maximum."""
    task = task_pair()
    limits = Leader(min_job_size=1, max_wait=0, retry_min=1, retry_max=4)
    async with open_leader(tmp_path, task, lambda _, __: answer(500), config=limits) as house:
        await house.upload(1)
        await house.create()
        waits = []
        for _ in range(4):
            await house.step()
            ((run_at,),) = await house.rows("SELECT run_at FROM aggregation_jobs")
            waits.append(run_at - house.clock.now())
            house.later()
        assert waits == [1000, 2000, 4000, 4000]


async def test_e1_a_peer_that_cannot_be_reached_is_left_alone(tmp_path: Path) -> None:
    """E1: a transport error blocks the peer's permits for a while; an answer frees them."""
    task = task_pair()
    async with open_leader(tmp_path, task, lambda _, __: b"", config=Leader(retry_min=5)) as house:
        await house.upload(100)
        await house.create()
        await house.step()
        peer = house.context.peers.at(house.task.configuration.helper_aggregator_endpoint)
        assert peer.free == 0
        house.later(5)
        assert peer.free == 1


async def test_d5_a_final_refusal_halves_the_job_until_the_culprit_is_one(tmp_path: Path) -> None:
    """D5, D4: invalidMessage at the first send halves the job; the one culprit is rejected and
    counted.
    """
    task = task_pair()
    culprit: list[bytes] = []

    def script(pair: TaskPair, request: Request) -> bytes:
        if request.method == "POST" and culprit[0] in request.body:
            return problem("invalidMessage")
        return honest(pair, request)

    async with open_leader(tmp_path, task, script) as house:
        await house.know_peer()
        reports = await house.upload(3)
        reports += await house.upload(4)
        culprit.append(reports[4][:16])
        await house.create()
        while await house.step():
            house.later()
        assert await house.aggregated() == 6
        counts = await house.counters()
        assert counts["aggregate_finished"] == 6
        assert counts["aggregate_invalid_message"] == 1
        assert await house.rows("SELECT DISTINCT state FROM report_chunks") == [("decided",)]
        assert await house.rows("SELECT count(DISTINCT seq) FROM report_chunks") == [(2,)]
        assert await house.rows("SELECT sum(length(ids)) FROM report_chunks") == [(7 * 16,)]
        assert set(await house.states()) == {"finished", "abandoned"}


async def test_d5_before_the_helper_ever_accepted_a_job_a_refused_one_waits_whole(
    tmp_path: Path,
) -> None:
    """D5: a wrong configuration must not reject reports; D4: the refusal makes the send's outcome
    known.
    """
    task = task_pair()
    refusing = [True]

    def script(pair: TaskPair, request: Request) -> bytes:
        return problem("invalidMessage") if refusing[0] else honest(pair, request)

    async with open_leader(tmp_path, task, script) as house:
        await house.upload(4)
        await house.create()
        for _ in range(3):
            await house.step()
            assert await house.rows("SELECT state, sends, n FROM aggregation_jobs") == [
                ("stored", 0, 4)
            ]
            house.later()
        refusing[0] = False
        await house.step()
        assert await house.aggregated() == 4


async def test_d4_the_same_refusal_at_the_second_send_is_not_final(tmp_path: Path) -> None:
    """D4: after a lost answer the Helper may have stored the job, so the Leader must not give it
    up.
    """
    task = task_pair()
    replies = [problem("invalidMessage"), b""]
    async with open_leader(tmp_path, task, lambda _, __: replies.pop()) as house:
        await house.know_peer()
        await house.upload(4)
        await house.create()
        await house.step()
        house.later()
        await house.step()
        assert await house.rows("SELECT state, sends, n FROM aggregation_jobs") == [
            ("stored", 2, 4)
        ]


async def test_d5_reports_that_were_too_early_come_again_in_a_later_job(tmp_path: Path) -> None:
    """D5: they become a chunk of their own, with a later run_at and their old place in order."""
    task = task_pair()
    mark = [TIME]

    def script(pair: TaskPair, request: Request) -> bytes:
        if request.method == "DELETE":
            return answer(204)
        rules = ReportRules(
            too_early_after=mark[0], task_start=0, task_end=FOREVER, expired_before=0
        )
        return ready(helper_response(pair, request.body, rules))

    async with open_leader(tmp_path, task, script) as house:
        house.later(-house.clock.now() / 1000 + (TIME + 1) * PRECISION)
        await house.upload(3, times=[TIME + 1] * 3)
        await house.upload(2)
        await house.create()
        await house.step()
        assert await house.aggregated() == 2
        assert await house.rows("SELECT n, state, seq FROM report_chunks ORDER BY seq") == [
            (3, "waiting", 1),
            (2, "decided", 2),
        ]
        assert "aggregate_report_too_early" not in await house.counters()
        mark[0] = TIME + 1
        house.later()
        await house.create()
        await house.step()
        assert await house.aggregated() == 5


async def test_b6_a_job_whose_reports_the_leader_rejects_all_needs_no_request(
    tmp_path: Path,
) -> None:
    """B6: a job without anything to send finishes at once; each rejection counts (D6: expired)."""
    task = task_pair()
    async with open_leader(tmp_path, task, honest) as house:
        await house.upload(3)
        await house.create()

        def expire(tx: Tx) -> None:
            tx.execute("UPDATE tasks SET expired_before = :mark", mark=TIME + 1)

        await house.context.run(expire)
        house.context.tasks._put(
            (await house.context.read(tasks.all_tasks))[0].unseal(house.pair.sealer)
        )
        await house.step()
        assert house.helper.requests == []
        assert await house.states() == {"finished": 1}
        assert (await house.counters())["aggregate_report_dropped"] == 3


async def test_i5_fifty_processing_answers_occupy_no_slot(tmp_path: Path) -> None:
    """I5: with one slot, other jobs start and finish while one job is polled fifty times."""
    task = task_pair()
    slow: list[bytes] = []
    polls: list[int] = []
    finished_between: list[int] = []

    def script(pair: TaskPair, request: Request) -> bytes:
        match request.method:
            case "POST" if not slow:
                slow.append(request.body)
                return answer(201, Location="/helper/slow", Retry_After="0")
            case "GET" if len(polls) < 50:
                polls.append(1)
                return answer(200, Retry_After="0")
            case "GET":
                return ready(helper_response(pair, slow[0]))
            case "POST":
                finished_between.append(len(polls))
                return ready(helper_response(pair, request.body))
            case _:
                return answer(204)

    config = Leader(min_job_size=1, max_job_size=2, max_wait=0, retry_min=0.001, retry_max=0.001)
    async with open_leader(
        tmp_path, task, script, config=config, clock=ManualClock(ticks=trio.current_time)
    ) as house:
        for _ in range(8):
            await house.upload(2)
        await house.create()

        async def done() -> bool:
            return await house.states() == {"finished": 8}

        await house.dispatch(done)
        assert len(polls) == 50
        assert await house.aggregated() == 16
        assert any(at < 50 for at in finished_between)


async def test_c6_leader_selected_jobs_name_their_batch_and_fill_it_exactly(
    tmp_path: Path,
) -> None:
    """C6: a batch is full by the reports aggregated: others take the places of rejected ones."""
    task = task_pair(batch_mode=BatchMode.LEADER_SELECTED, min_batch_size=4)
    async with open_leader(tmp_path, task, honest) as house:
        await house.upload(6, tamper_with=[0])
        await house.create()
        while await house.step():
            await house.create()
        sizes = await house.rows("SELECT bucket, sum(n) FROM batch_shares GROUP BY bucket")
        assert sorted(n for _, n in sizes) == [2, 3]
        await house.upload(1)
        await house.create()
        while await house.step():
            pass
        sizes = await house.rows("SELECT bucket, sum(n) FROM batch_shares GROUP BY bucket")
        assert sorted(n for _, n in sizes) == [2, 4]
        assert (await house.counters())["aggregate_vdaf_verify_error"] == 1
        posts = [request.body for request in house.helper.requests if request.method == "POST"]
    heads = [AggregationJobInitHead.decode(body)[0] for body in posts]
    assert {head.agg_param for head in heads} == {b""}, "the only valid one for Prio3"
    assert {tuple(each.type for each in head.extensions) for head in heads} == {(1,)}
    named = [head.extensions[0].data for head in heads]
    assert (len(named), {bucket for bucket, _ in sizes}) == (3, set(named))
    assert {len(batch_id) for batch_id in named} == {32}


async def test_d6_a_stored_job_is_sent_until_its_newest_report_is_expired(tmp_path: Path) -> None:
    """D6: then it ends as expired, and the reports that the Helper may have aggregated count as
    lost.
    """
    task = task_pair(settings=QUICK_EXPIRY)
    async with open_leader(tmp_path, task, lambda _, __: answer(500)) as house:
        await house.upload(2)
        await house.create()
        await house.step()
        assert await house.states() == {"stored": 1}
        house.later(3 * PRECISION)
        await house.step()
        assert await house.states() == {"expired": 1}
        assert (await house.counters())["aggregate_lost"] == 2
        assert len(house.helper.requests) == 1


@pytest.mark.parametrize("is_computed", [False, True])
async def test_c6_a_job_that_was_not_sent_before_its_batch_expires_gives_its_reports_back(
    tmp_path: Path, is_computed: bool
) -> None:
    """Its Helper may drop the batch before the job comes; in another batch the reports count."""
    settings = TaskSettings(report_expiry_age=2 * PRECISION, batch_target_size=10)
    task = task_pair(batch_mode=BatchMode.LEADER_SELECTED, settings=settings)
    async with open_leader(tmp_path, task, honest) as house:
        await house.upload(2)
        await house.create()
        await house.step()
        house.later(PRECISION)
        await house.upload(3, times=[TIME + 1] * 3)
        await house.create()
        peer = house.context.peers.at(house.task.configuration.helper_aggregator_endpoint)
        if is_computed:  # and stored to be sent once the peer has a permit free
            peer.paused = True
            await house.step()
            peer.paused = False
            assert await house.states() == {"finished": 1, "stored": 1}
        house.later(2 * PRECISION - 300)
        await house.step()
        assert await house.states() == {"finished": 1, "abandoned": 1}
        assert [r.method for r in house.helper.requests] == ["POST", "DELETE"]
        await house.create()
        await house.step()
        sizes = await house.rows("SELECT n FROM batch_shares GROUP BY bucket ORDER BY n")
        assert sizes == [(2,), (3,)]
        assert (await house.counters())["aggregate_finished"] == 5


DAY = 86_400
TWO_DAYS = Leader(
    min_job_size=1, max_wait=0, retry_min=0.001, retry_max=0.001, give_up_after=2 * DAY
)
SUSPECT = "SELECT bucket FROM suspect_batches"


def wrong_ids(pair: TaskPair, request: Request) -> bytes:
    """Aggregate the reports, and answer for others."""
    if request.method == "DELETE":
        return answer(204)
    good = helper_response(pair, request.body)
    return ready(bytes([good[0] ^ 1]) + good[1:], Location=LOCATION)


async def refused_until_it_ends(house: LeaderHarness, *, hours: int = 12) -> int:
    """Step the one job every ``hours`` until it ends. Return after how many hours it did."""
    for passed in range(0, 500, hours):
        if not await house.step():
            return passed - hours
        house.later(hours * 3600)
    raise AssertionError("the job is never given up")


@pytest.mark.parametrize(
    ("refuse", "asked"),
    [
        (lambda _, __: problem("unrecognizedTask", 404), ["POST"]),
        (lambda _, __: answer(403), ["POST"]),
        (lambda _, __: answer(200, b"x", Content_Type="text/html"), ["POST"]),
        (wrong_ids, ["POST", "DELETE"]),
    ],
)
async def test_d4_b5_a_job_that_is_refused_for_a_week_is_given_up(
    tmp_path: Path, refuse: Script, asked: list[str]
) -> None:
    """Its reports are counted, its batch is suspect; the last try is a send, and then the Leader
    deletes the job if it knows its Location.
    """
    async with open_leader(tmp_path, task_pair(), refuse) as house:
        await house.know_peer()
        await house.upload(3)
        await house.create()
        with structlog.testing.capture_logs() as logs:
            assert await refused_until_it_ends(house) == 7 * 24
        assert await house.states() == {"lost": 1}
        assert await house.counters() == {"upload_accepted": 3, "aggregate_lost": 3}
        methods = [request.method for request in house.helper.requests]
        assert methods == ["POST"] * 15 + asked[1:]
        assert len({request.body for request in house.helper.requests[:15]}) == 1
        assert await house.rows(SUSPECT) == [(TIME.to_bytes(8, "big"),)]
        assert await house.rows("SELECT * FROM job_bodies") == []
        [line] = [entry for entry in logs if entry["event"] == "job_given_up"]
        assert (line["reports"], "for 7 days" in line["error"]) == (3, True)


async def test_d4_the_last_try_of_a_job_may_be_a_poll(tmp_path: Path) -> None:
    """The Helper gives out a Location and then refuses it, for ever; the Leader deletes the job."""

    def script(_: TaskPair, request: Request) -> bytes:
        match request.method:
            case "POST":
                return answer(200, Location=LOCATION, Retry_After="1")
            case "GET":
                return answer(404)
            case _:
                return answer(204)

    async with open_leader(tmp_path, task_pair(), script, config=TWO_DAYS) as house:
        await house.upload(3)
        await house.create()
        assert await refused_until_it_ends(house, hours=1) <= 50
        assert await house.states() == {"lost": 1}
        assert [r.method for r in house.helper.requests][-3:] == ["POST", "GET", "DELETE"]


async def test_d4_an_outage_longer_than_a_week_gives_no_job_up(tmp_path: Path) -> None:
    """The Helper refuses before it and after it, and aggregates the job in the end."""
    answers = [answer(404), *[answer(502)] * 20, answer(404)]

    def script(pair: TaskPair, request: Request) -> bytes:
        return answers.pop(0) if answers else honest(pair, request)

    async with open_leader(tmp_path, task_pair(), script, config=TWO_DAYS) as house:
        await house.upload(3)
        await house.create()
        await refused_until_it_ends(house)
        assert await house.states() == {"finished": 1}
        assert await house.aggregated() == 3
        assert await house.rows(SUSPECT) == []


async def test_d4_the_time_in_which_a_task_is_disabled_is_not_refusal(tmp_path: Path) -> None:
    """The Helper refuses the job before it and after it; nobody has asked it in between."""
    async with open_leader(
        tmp_path, task_pair(), lambda _, __: answer(404), config=TWO_DAYS
    ) as house:
        dispatcher = Dispatcher(house.context, {("aggregation", "leader"): aggregation.run}, 1)

        async def dispatch() -> dict[str, int]:
            async with trio.open_nursery() as nursery:
                await dispatcher.dispatch(nursery)
            return await house.states()

        async def become(state: TaskState) -> None:
            await house.context.run(tasks.set_state, house.task.task_pk, state)
            await house.context.tasks.reload()

        await house.upload(3)
        await house.create()
        assert await dispatch() == {"stored": 1}
        await become(TaskState.DISABLED)
        house.later(5 * DAY)
        assert await dispatch() == {"stored": 1}
        await become(TaskState.ACTIVE)
        assert await dispatch() == {"stored": 1}
        house.later(2 * DAY - 1)
        assert await dispatch() == {"stored": 1}
        house.later(1)
        assert await dispatch() == {"lost": 1}
        assert len(house.helper.requests) == 4


async def test_d4_the_batch_of_a_job_that_the_helper_never_stored_is_not_suspect(
    tmp_path: Path,
) -> None:
    """D5: the Helper of a pair that never worked has judged each send, and stored none."""
    refuse = problem("invalidMessage")
    async with open_leader(tmp_path, task_pair(), lambda _, __: refuse, config=TWO_DAYS) as house:
        await house.upload(3)
        await house.create()
        assert await refused_until_it_ends(house) == 48
        assert await house.counters() == {"upload_accepted": 3, "aggregate_lost": 3}
        assert await house.rows(SUSPECT) == []


async def test_d4_a_suspect_leader_selected_batch_takes_nothing_more(tmp_path: Path) -> None:
    """Neither new reports nor those of a job that was not sent yet: they go into another batch."""
    task = task_pair(batch_mode=BatchMode.LEADER_SELECTED, min_batch_size=10)
    refusing = [True]

    def script(pair: TaskPair, request: Request) -> bytes:
        return answer(404) if refusing[0] else honest(pair, request)

    async with open_leader(tmp_path, task, script, config=TWO_DAYS) as house:
        await house.upload(2)
        await house.create()
        peer = house.context.peers.at(house.task.configuration.helper_aggregator_endpoint)
        await house.step()
        await house.upload(3)
        await house.create()
        peer.paused = True  # the second job is not sent
        [unsent] = [each for each in await house.lease() if each.due.state == "assigned"]
        await aggregation.run(
            house.context,
            Step(unsent, house.context.tasks.by_pk(house.task.task_pk), house.slots, peer),
        )
        peer.paused = False
        [(first,)] = await house.rows("SELECT DISTINCT bucket FROM aggregation_jobs")
        [sent] = await house.rows("SELECT job_pk FROM aggregation_jobs WHERE sends > 0")
        now = house.context.now()
        await house.context.run(
            give_up_job, sent[0], LeaderJobState.LOST, "given up by an operator", now
        )
        assert await house.rows(SUSPECT) == [(first,)]
        refusing[0] = False
        house.later()
        await house.step()
        assert await house.states() == {"lost": 1, "abandoned": 1}
        await house.upload(4)
        await house.create()
        while await house.step():
            pass
        [(second, n)] = await house.rows("SELECT bucket, sum(n) FROM batch_shares GROUP BY bucket")
        assert (second != first, n) == (True, 7)
        known = await house.rows("SELECT batch_id FROM outstanding_batches")
        assert (known, await house.rows(SUSPECT)) == ([(second,)], []), "nothing is left to do"


async def test_d5_a_polled_job_that_is_halved_is_deleted_at_the_helper(tmp_path: Path) -> None:
    """The Helper can clean up (section "Aggregation Job Abandonment and Deletion")."""

    def script(pair: TaskPair, request: Request) -> bytes:
        match request.method:
            case "POST" if len(house.helper.requests) == 1:
                return answer(200, Location=LOCATION, Retry_After="1")
            case "GET":
                return problem("invalidMessage")
            case _:
                return honest(pair, request)

    async with open_leader(tmp_path, task_pair(), script) as house:
        await house.know_peer()
        await house.upload(2)
        await house.create()
        for _ in range(2):
            await house.step()
            house.later()
        assert await house.states() == {"abandoned": 1, "assigned": 2}
        assert [r.method for r in house.helper.requests] == ["POST", "GET", "DELETE"]
        assert house.helper.requests[2].target == LOCATION


async def test_d6_a_polled_job_that_expires_is_deleted_at_the_helper(tmp_path: Path) -> None:
    """The Helper can clean up; its answer would come too late."""

    def script(_: TaskPair, request: Request) -> bytes:
        if request.method == "DELETE":
            return answer(204)
        return answer(200, Location=LOCATION, Retry_After="1")

    async with open_leader(tmp_path, task_pair(settings=QUICK_EXPIRY), script) as house:
        await house.upload(2)
        await house.create()
        await house.step()
        house.later(3 * PRECISION)
        await house.step()
        assert await house.states() == {"expired": 1}
        assert [r.method for r in house.helper.requests] == ["POST", "DELETE"]
        assert house.helper.requests[1].target == LOCATION
