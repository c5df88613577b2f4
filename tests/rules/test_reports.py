"""Rules B1 to B7: what is wrong with a report, a job, an answer or an endpoint."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from dapd.client import Client
from dapd.collector import Collector
from dapd.crypto import HpkeKeypair
from dapd.datastore import Tx, batches
from dapd.errors import Abort, UsageError
from dapd.messages.aggregation import AggregationJobInitHead
from dapd.messages.collection import CollectionJobReq, Query
from dapd.messages.common import Interval
from dapd.protocol.batches import time_bucket
from dapd.protocol.states import RangeState
from dapd.protocol.task import END_OF_TIME, TaskSettings
from dapd.reports import ReportError, ReportRules, parse_upload_errors
from dapd.taskfile.making import refuse_unsafe
from tests.clock import PRECISION, TIME
from tests.database_pair import open_databases
from tests.helper_harness import open_helper
from tests.leader_harness import helper_response, honest, open_leader, ready
from tests.paths.test_every_mode import leader_payload
from tests.raw_http import Request
from tests.scripted_aggregators import beyond_loopback, make_task
from tests.task_pair import (
    X25519,
    TaskPair,
    flip,
    leader_job,
    make_reports,
    report_ids,
    task_pair,
)

EXPIRING = TaskSettings(report_expiry_age=3 * PRECISION)
UNKNOWN = [(77, b"")]


async def test_b1_each_fault_of_an_upload_has_its_error_and_its_place(tmp_path: Path) -> None:
    """The answer names the refused ones in the order of the request; those in between count."""
    pair = task_pair(task_interval=Interval(TIME - 5, 15), settings=EXPIRING)
    async with open_leader(tmp_path, pair, honest) as house:
        [known] = await house.upload(1)

        def collect(tx: Tx) -> None:
            hour = time_bucket(TIME - 1), time_bucket(TIME)
            pk, state = house.task.task_pk, RangeState.COLLECTED
            batches.close(tx, pk, *hour, state=state, collection_pk=None)

        await house.context.run(collect)

        def at(time: int) -> bytes:
            return make_reports(house.pair, [1], times=[time])[0]

        another_key = replace(house.pair, leader_key=HpkeKeypair.generate(99, *X25519))
        faults = [
            (known, ReportError.REPORT_REPLAYED),
            (at(TIME - 1), ReportError.BATCH_COLLECTED),
            (at(TIME + 3), ReportError.REPORT_TOO_EARLY),
            (at(TIME - 4), ReportError.REPORT_DROPPED),
            (at(TIME - 6), ReportError.REPORT_DROPPED),
            (at(TIME + 10), ReportError.REPORT_DROPPED),
            (make_reports(another_key, [1])[0], ReportError.OUTDATED_CONFIG),
            (flip(at(TIME), leader_payload(at(TIME))), ReportError.HPKE_DECRYPT_ERROR),
            (
                house.pair.client.seal([1], report_ids(1), [TIME], leader=UNKNOWN)[0],
                ReportError.INVALID_MESSAGE,
            ),
        ]
        request = b"".join(report + at(TIME) for report, _ in faults)
        result = await house.context.uploads.submit(house.task, request)
        assert sorted(parse_upload_errors(result.upload_errors)) == sorted(
            (report[:16], error) for report, error in faults
        )
        order = [report_id for report_id, _ in parse_upload_errors(result.upload_errors)]
        assert order == [report[:16] for report, _ in faults]
        assert (await house.counters())["upload_accepted"] == 1 + len(faults)


async def test_b2_each_side_judges_a_report_again_by_its_own_time(tmp_path: Path) -> None:
    """All three were good at their upload; one expires before the job starts, and the next one is
    older than what the Helper keeps.
    """

    def script(pair: TaskPair, request: Request) -> bytes:
        rules = ReportRules(
            too_early_after=TIME, task_start=0, task_end=END_OF_TIME, expired_before=TIME
        )
        return ready(helper_response(pair, request.body, rules))

    async with open_leader(tmp_path, task_pair(settings=EXPIRING), script) as house:
        await house.upload(3, times=[TIME - 2, TIME - 1, TIME])
        await house.create()
        house.later(2 * PRECISION)
        await house.step()
        assert await house.counters() == {
            "upload_accepted": 3,
            "aggregate_report_dropped": 2,
            "aggregate_finished": 1,
        }
        [sent] = [r for r in house.helper.requests if r.method == "POST"]
        assert house.pair.help(sent.body[len(AggregationJobInitHead().encode()) :]).outcomes == (
            bytes(2)
        )


async def test_b3_an_unknown_extension_fails_its_own_report_where_it_is_read(
    tmp_path: Path,
) -> None:
    """The Leader refuses the one that it sees at the upload, the Helper the one in its share."""
    async with open_leader(tmp_path, task_pair(), honest) as house:
        client, ids = house.pair.client, report_ids(2)
        reports = [
            *make_reports(house.pair, [1]),
            *client.seal([1], ids[:16], [TIME], leader=UNKNOWN),
            *client.seal([1], ids[16:], [TIME], helper=UNKNOWN),
            *make_reports(house.pair, [1]),
        ]
        result = await house.context.uploads.submit(house.task, b"".join(reports))
        refused = [(ids[:16], ReportError.INVALID_MESSAGE)]
        assert parse_upload_errors(result.upload_errors) == refused
        await house.create()
        await house.step()
        counters = await house.counters()
        assert (counters["aggregate_invalid_message"], counters["aggregate_finished"]) == (1, 2)


async def test_b4_another_key_or_parameter_spoils_the_job_and_the_query(tmp_path: Path) -> None:
    """The same reports in a right job are fresh."""
    async with open_helper(tmp_path, task_pair()) as house:
        reports = make_reports(house.pair, [1, 1])
        for head, error in (
            (AggregationJobInitHead(verification_key_id=1), "invalidMessage"),
            (AggregationJobInitHead(agg_param=b"x"), "invalidAggregationParameter"),
        ):
            with pytest.raises(Abort) as caught:
                await house.create(leader_job(house.pair, reports, head=head))
            assert caught.value.type == error
        assert await house.outcomes(house.job(reports)) == bytes(2)
    async with open_databases(tmp_path) as pair:
        with pytest.raises(Abort) as caught:
            pair.query(CollectionJobReq(Query(Interval(TIME, 1)), b"x"))
        assert caught.value.type == "invalidAggregationParameter"


ROW = 18
"""The bytes of a rejection in an AggregationJobResp: an id, its type, a ReportError."""
WRONG_IDS: dict[str, Callable[[bytes], bytes]] = {
    "missing": lambda response: response[:ROW],
    "extra": lambda response: response + bytes(16) + response[16:ROW],
    "repeated": lambda response: response[:ROW] * 2,
    "reordered": lambda response: response[ROW:] + response[:ROW],
}


@pytest.mark.parametrize("mangle", WRONG_IDS.values(), ids=WRONG_IDS.keys())
async def test_b5_an_answer_about_other_ids_is_used_for_no_report(
    tmp_path: Path, mangle: Callable[[bytes], bytes]
) -> None:
    """What the Helper has stored is unknown, so the same bytes are sent until the answer fits."""
    answers = 0

    def script(pair: TaskPair, request: Request) -> bytes:
        nonlocal answers
        answers += 1
        response = helper_response(pair, request.body)
        assert len(response) == 2 * ROW
        return ready(mangle(response) if answers == 1 else response)

    async with open_leader(tmp_path, task_pair(), script) as house:
        await house.upload(2, tamper_with=[0, 1])
        await house.create()
        await house.step()
        assert await house.states() == {"stored": 1}
        assert await house.counters() == {"upload_accepted": 2}
        house.later()
        await house.step()
        assert len({request.body for request in house.helper.requests}) == 1
        assert (await house.counters())["aggregate_vdaf_verify_error"] == 2


async def test_b5_an_unknown_error_is_a_rejection(tmp_path: Path) -> None:
    """A later version of the draft may have more of them; the other reports of the job count."""

    def script(pair: TaskPair, request: Request) -> bytes:
        response = helper_response(pair, request.body)
        return ready(response.replace(bytes([2, ReportError.VDAF_VERIFY_ERROR]), bytes([2, 200])))

    async with open_leader(tmp_path, task_pair(), script) as house:
        await house.upload(2, tamper_with=[1])
        await house.create()
        await house.step()
        assert await house.states() == {"finished": 1}
        counters = await house.counters()
        assert counters.pop("upload_accepted") == 2
        assert counters.pop("aggregate_finished") == 1
        assert list(counters.values()) == [1]


async def test_b6_a_job_of_which_the_leader_rejects_all_ends_without_a_request(
    tmp_path: Path,
) -> None:
    """Its reports expire between its creation and its start."""
    async with open_leader(tmp_path, task_pair(settings=EXPIRING), honest) as house:
        await house.upload(2, times=[TIME - 2] * 2)
        await house.create()
        house.later(2 * PRECISION)
        await house.step()
        assert house.helper.requests == []
        assert await house.states() == {"finished": 1}
        assert (await house.counters())["aggregate_report_dropped"] == 2


async def test_b7_endpoints_are_kept_and_http_beyond_loopback_is_refused() -> None:
    """Wherever something would be sent there: by a new task, a Client and a Collector."""
    odd = "http://127.0.0.1:080//A%2fb/./"
    files = make_task("http://127.0.0.1:1", leader_aggregator_endpoint=odd)
    configuration = files.client.configuration
    assert configuration.leader_aggregator_endpoint == odd
    assert type(configuration).decode(configuration.encode()) == configuration
    far = make_task(beyond_loopback("http://127.0.0.1:1"))
    with pytest.raises(UsageError, match="http://"):
        refuse_unsafe(far.client.configuration)
    with pytest.raises(UsageError, match="http://"):
        Client(far.client)
    with pytest.raises(UsageError, match="http://"):
        Collector(far.collector)
    Client(far.client, allow_insecure_http=True)
