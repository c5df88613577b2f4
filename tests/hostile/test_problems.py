"""Every refusal is a problem document of the draft; many bad reports are many answers."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import trio
from hypothesis import given, settings
from hypothesis import strategies as st

from dapd.messages.aggregation import AggregationJobContinueHead
from dapd.messages.collection import AggregateShareReq, BatchSelector, CollectionJobReq, Query
from dapd.messages.common import CHECKSUM_SIZE, HpkeConfigList, Interval, MediaType, b64url_encode
from dapd.reports import ReportError
from dapd.server.problems import TITLES
from tests import raw_http
from tests.clock import TIME
from tests.pair_harness import TaskHarness, open_pair
from tests.task_pair import make_ids

MANY = 10_000
TYPES: dict[str, MediaType] = {
    "reports": MediaType.UPLOAD_REQ,
    "collection_jobs": MediaType.COLLECTION_JOB_REQ,
    "aggregation_jobs": MediaType.AGGREGATION_JOB_INIT_REQ,
    "aggregation_jobs/AAAAAAAAAAAAAAAAAAAAAA": MediaType.AGGREGATION_JOB_CONTINUE_REQ,
    "aggregate_shares": MediaType.AGGREGATE_SHARE_REQ,
}
BY_LEADER = {"reports", "collection_jobs"}


def honest(hands: TaskHarness, resource: str) -> bytes:
    """A body that an honest peer could send."""
    asked = CollectionJobReq(Query(Interval(TIME + 10, 1)))
    match resource:
        case "reports":
            return b"".join(hands.seal([1, 0], "upload"))
        case "collection_jobs":
            return asked.encode()
        case "aggregation_jobs":
            return hands.start_job(hands.seal([1, 0], "job")).request
        case "aggregate_shares":
            batch = BatchSelector(Interval(TIME + 10, 1))
            return AggregateShareReq(asked, batch, 2, bytes(CHECKSUM_SIZE)).encode()
        case _:
            return AggregationJobContinueHead(1).encode()


def nearly(seed: bytes) -> st.SearchStrategy[bytes]:
    """Random bytes, or ``seed`` with some other bytes in place of a piece of it."""

    def spliced(start: int, size: int, other: bytes) -> bytes:
        return seed[:start] + other + seed[start + size :]

    places, sizes = st.integers(0, len(seed)), st.integers(0, len(seed))
    return st.one_of(st.binary(max_size=200), st.builds(spliced, places, sizes, st.binary()))


def must_be_a_problem(reply: raw_http.Reply) -> None:
    """Of the draft's types, or ``about:blank``; never an error of the server's."""
    assert 400 <= reply.status < 500, reply
    assert reply.error in {None, *TITLES}, reply
    assert reply.problem["status"] == reply.status


@pytest.mark.parametrize("resource", sorted(TYPES))
async def test_a10_every_refusal_is_a_problem_document_of_the_draft(
    tmp_path: Path, resource: str
) -> None:
    """On both Aggregators, with any body, the right token or none, the right type or another."""
    still: dict[str, dict[str, Any]] = {"collection": {"poll_hold": 0.0}}
    async with open_pair(tmp_path, leader=still, helper={"helper": {"mode": "sync"}}) as (
        pair,
        http,
    ):
        hands = TaskHarness(await pair.new_task("count"), http)
        files = hands.task.files
        right = files.leader.aggregator_auth_token
        if resource == "collection_jobs":
            right = files.collector.collector_auth_token
        path = f"/tasks/{hands.id_text}/{resource}"

        def attack() -> None:
            @settings(max_examples=100)
            @given(
                nearly(honest(hands, resource)),
                st.sampled_from([right, right, right, right[:-1], ""]),
                st.sampled_from([TYPES[resource]] * 4 + [*MediaType]),
                st.sampled_from([pair.leader.port, pair.helper.port]),
            )
            def probe(body: bytes, token: str, content: MediaType, port: int) -> None:
                headers = {"Content-Type": content.value, "DAP-Auth-Token": token}
                ask = partial(raw_http.ask, headers=headers, body=body)
                reply: raw_http.Reply = trio.from_thread.run(ask, port, "POST", path)
                if reply.status != 200:
                    must_be_a_problem(reply)
                owner = pair.leader.port if resource in BY_LEADER else pair.helper.port
                if port != owner or (token != right and resource != "reports"):
                    assert reply.status in {401, 404}
                elif content is not TYPES[resource]:
                    assert reply.status == 415

            probe()

        await trio.to_thread.run_sync(attack)
        assert (await raw_http.ask(pair.leader.port, "GET", "/hpke_config")).status == 200


async def test_i6_ten_thousand_bad_and_good_reports_are_answered_in_order(tmp_path: Path) -> None:
    """Each bad one with its reason and in its place, and each good one stored, in one request."""
    kinds = (0, ReportError.INVALID_MESSAGE, ReportError.OUTDATED_CONFIG)
    async with open_pair(tmp_path) as (pair, http):
        hands = TaskHarness(await pair.new_task("count"), http)
        each = MANY // 4

        def make() -> Sequence[tuple[list[bytes], bytes]]:
            ones = [1] * each
            good = hands.seal(ones, "good")
            cut = hands.seal(ones, "cut", spoil={"leader": lambda share: share[:-1]})
            lost = hands.seal(ones, "lost", unknown=["leader"])
            return [
                (good, make_ids(each, "good")),
                (cut, make_ids(each, "cut")),
                (lost, make_ids(each, "lost")),
                (good, make_ids(each, "good")),
            ]

        columns = await trio.to_thread.run_sync(make)
        mixed = [reports[row] for row in range(each) for reports, _ in columns]
        expected = [
            (ids[16 * row : 16 * row + 16], int(kind))
            for row in range(each)
            for kind, (_, ids) in zip((*kinds, ReportError.REPORT_REPLAYED), columns, strict=True)
            if kind
        ]
        assert await hands.upload(mixed) == expected
        counted = await hands.counters(pair.leader)
        assert counted == {
            "upload_accepted": each,
            "upload_invalid_message": each,
            "upload_outdated_config": each,
            "upload_report_replayed": each,
        }


async def test_ten_thousand_reports_of_nothing_are_answered(tmp_path: Path) -> None:
    """The smallest that parse: no public share, ciphertexts of a byte. None opens or is stored."""
    async with open_pair(tmp_path) as (pair, http):
        hands = TaskHarness(await pair.new_task("count"), http)
        [config] = HpkeConfigList.decode(pair.leader.context.keyrings.published).configs
        ids = make_ids(MANY, "nothing")
        empty = bytes(2) + bytes(4) + 2 * (bytes([config.id]) + b"\0\1x" + b"\0\0\0\1x")
        tail = TIME.to_bytes(8, "big") + empty
        tiny = [ids[at : at + 16] + tail for at in range(0, len(ids), 16)]
        rejected = await hands.upload(tiny)
        assert [each for each, _ in rejected] == [report[:16] for report in tiny]
        assert {code for _, code in rejected} == {ReportError.HPKE_DECRYPT_ERROR}
        stored = await pair.leader.context.read(lambda tx: tx.all("SELECT 1 FROM report_chunks"))
        assert stored == []


async def test_a_job_of_exactly_the_maximum_size_is_taken(tmp_path: Path) -> None:
    """And one that is a byte above is a 413, before anything is made of it."""

    async def size_of(count: int) -> int:
        async with open_pair(tmp_path / "measured") as (pair, http):
            hands = TaskHarness(await pair.new_task("count"), http)
            return len(hands.start_job(hands.seal([1] * count, "any")).request)

    limit = await size_of(20)
    helper: dict[str, dict[str, Any]] = {"server": {"max_body_bytes": limit}}
    async with open_pair(tmp_path, helper=helper) as (pair, http):
        hands = TaskHarness(await pair.new_task("count"), http)
        job = hands.start_job(hands.seal([1] * 20, "largest"))
        assert len(job.request) == limit
        path = f"/tasks/{b64url_encode(hands.task.task_id)}/aggregation_jobs"
        headers = {
            "Content-Type": MediaType.AGGREGATION_JOB_INIT_REQ.value,
            "DAP-Auth-Token": job.token,
        }
        over = await raw_http.ask(pair.helper.port, "POST", path, headers, job.request + b"\0")
        assert (over.status, over.error) == (413, None)
        assert (await job.run()).outcomes == bytes(20)
