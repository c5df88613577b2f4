"""``dapd.client`` against a scripted Leader that really opens what it is sent."""

from __future__ import annotations

from datetime import UTC, datetime
from functools import reduce
from operator import and_, or_
from pathlib import Path

import pytest
import trio
from trio.testing import MockClock

from dapd.client import Client, Rejection, Uploaded, UploadFailed
from dapd.crypto import HpkeKeypair
from dapd.errors import UsageError
from dapd.http import Patience
from dapd.messages.common import HpkeConfig, HpkeConfigList, MediaType
from dapd.taskfile import TaskFiles, write_task_files
from tests.raw_http import Request, answer
from tests.scripted_aggregators import NOW, ScriptedAggregators, beyond_loopback, make_task
from tests.task_pair import X25519

QUICK = Patience(attempts=3, minimum=0.001, maximum=0.001)
URN = "urn:ietf:params:ppm:dap:error:"


def client(files: TaskFiles, **options: object) -> Client:
    return Client(files.client, patience=QUICK, clock=lambda: NOW, **options)  # type: ignore[arg-type]


async def test_measurements_arrive_in_batches(nursery: trio.Nursery) -> None:
    """Each request has at most ``batch_size`` reports; the Leader opens them all."""
    aggregators = ScriptedAggregators()
    files = await aggregators.serve(nursery)
    done: list[int] = []
    async with client(files, batch_size=2) as uploader:
        assert await uploader.upload(iter([0, 1, 2, 3, 3]), progress=done.append) == Uploaded(5, ())
    assert aggregators.accepted == 5
    assert done == [2, 2, 1]
    assert aggregators.targets() == ["hpke_config"] * 2 + ["reports"] * 3


async def test_every_report_has_a_random_id(nursery: trio.Nursery) -> None:
    """16 bytes, of which every bit varies (section "Upload Request")."""
    aggregators = ScriptedAggregators()
    files = await aggregators.serve(nursery)
    async with client(files) as uploader:
        await uploader.upload([0] * 100)
    body = aggregators.server.requests[-1].body
    size = len(body) // 100
    ids = [int.from_bytes(body[at : at + 16]) for at in range(0, len(body), size)]
    assert len(set(ids)) == 100
    assert reduce(or_, ids) == 2**128 - 1
    assert reduce(and_, ids) == 0


async def test_a_task_file_is_enough(nursery: trio.Nursery, tmp_path: Path) -> None:
    """A program names the file and uploads."""
    aggregators = ScriptedAggregators()
    write_task_files(tmp_path, await aggregators.serve(nursery))
    async with Client(tmp_path / "client.toml", clock=lambda: NOW) as uploader:
        assert (await uploader.upload([1])).accepted == 1


async def test_a_rejected_report_is_a_value(nursery: trio.Nursery) -> None:
    """It has the measurement's index, also in a later batch, and the draft's name of the error."""
    aggregators = ScriptedAggregators()
    files = await aggregators.serve(nursery)
    async with client(files, batch_size=2) as uploader:
        result = await uploader.upload([0, 1, 2], time=NOW + 100)
        assert result.accepted == 0
        assert [(each.index, each.reason) for each in result.rejected] == [
            (0, "report_too_early"),
            (1, "report_too_early"),
            (2, "report_too_early"),
        ]
        assert await uploader.upload([0], time=datetime.fromtimestamp(NOW, UTC)) == Uploaded(1, ())
        with pytest.raises(ValueError, match="no time zone"):
            await uploader.upload([0], time=datetime(2026, 1, 1))  # noqa: DTZ001 - on purpose


async def test_d7_a_replay_of_the_same_bytes_counts_as_delivered(nursery: trio.Nursery) -> None:
    """The Leader's answer is lost after its commit; the retry sends the identical bytes."""
    lost = iter([b""])
    aggregators = ScriptedAggregators(
        lambda request: next(lost, None) if request.method == "POST" else None
    )
    files = await aggregators.serve(nursery)
    async with client(files) as uploader:
        assert await uploader.upload([0, 1]) == Uploaded(2, ())
    first, second = (r.body for r in aggregators.server.requests if r.method == "POST")
    assert first == second
    assert aggregators.accepted == 2


async def test_d7_after_outdated_config_reports_are_made_anew(nursery: trio.Nursery) -> None:
    """The Leader changed its key: fresh configurations, fresh report ids, one more attempt."""
    aggregators = ScriptedAggregators()
    files = await aggregators.serve(nursery)
    async with client(files) as uploader:
        await uploader.upload([0])
        aggregators.leader_keys = [HpkeKeypair.generate(2, *X25519)]
        assert await uploader.upload([1, 2]) == Uploaded(2, ())
    before, after = (r.body for r in aggregators.server.requests[-4:] if r.method == "POST")
    assert before[:16] != after[:16]
    assert aggregators.targets()[-4:] == ["reports", "hpke_config", "hpke_config", "reports"]


async def test_outdated_config_twice_is_final(nursery: trio.Nursery) -> None:
    """A Leader that publishes a key it doesn't have is asked once more, not for ever."""
    aggregators = ScriptedAggregators()
    files = await aggregators.serve(nursery)
    stale = aggregators.leader_keys[0].config

    def publish_stale(request: Request) -> bytes | None:
        if not request.target.endswith("leader/hpke_config"):
            return None
        return answer(200, listed(stale), Content_Type=MediaType.HPKE_CONFIG_LIST)

    aggregators.disturb = publish_stale
    aggregators.leader_keys = [HpkeKeypair.generate(2, *X25519)]
    async with client(files) as uploader:
        assert (await uploader.upload([1, 2])).rejected == (Rejection(0, 11), Rejection(1, 11))
    assert aggregators.targets().count("reports") == 2


async def test_configurations_are_fetched_once_and_again_when_stale(
    nursery: trio.Nursery, mock_clock: MockClock
) -> None:
    """Cache-Control says for how long; concurrent uploads share one fetch."""
    aggregators = ScriptedAggregators(cache_control="max-age=60")
    files = await aggregators.serve(nursery)
    async with client(files) as uploader:
        async with trio.open_nursery() as uploads:
            for bucket in range(4):
                uploads.start_soon(uploader.upload, [bucket])
        assert aggregators.targets().count("hpke_config") == 2
        mock_clock.jump(61)
        await uploader.upload([1])
        assert aggregators.targets().count("hpke_config") == 4


async def test_a_leader_out_of_reach_is_one_clear_error(nursery: trio.Nursery) -> None:
    """After its patience the client says so, and what had been delivered before."""
    aggregators = ScriptedAggregators()
    files = await aggregators.serve(nursery)
    async with client(files, batch_size=2) as uploader:
        await uploader.upload([0])
        served = iter([None])
        aggregators.disturb = lambda _: next(served, answer(503, b"later"))
        with pytest.raises(UploadFailed, match="HTTP 503: later; try again later") as error:
            await uploader.upload([0, 1, 2])
    assert error.value.delivered == Uploaded(2, ())
    assert len(aggregators.server.requests) == 3 + 1 + QUICK.attempts


@pytest.mark.parametrize(
    ("reply", "message", "type_"),
    [
        (answer(413), "request too large for the Leader; use a smaller batch size", None),
        (
            answer(400, f'{{"type": "{URN}unrecognizedTask"}}'.encode()),
            "the Leader doesn't know the task",
            "unrecognizedTask",
        ),
        (
            answer(400, f'{{"type": "{URN}invalidMessage", "detail": "at byte 3"}}'.encode()),
            "refuses the request with 400 invalidMessage at byte 3",
            "invalidMessage",
        ),
        (
            answer(200, bytes(17), Content_Type=MediaType.UPLOAD_ERRORS),
            "rejects reports that were not sent",
            None,
        ),
        (
            answer(200, b"abc", Content_Type=MediaType.UPLOAD_ERRORS),
            "the Leader's UploadErrors",
            None,
        ),
    ],
)
async def test_a_refusal_says_what_to_do(
    nursery: trio.Nursery, reply: bytes, message: str, type_: str | None
) -> None:
    """A refusal of the whole request is not repeated."""
    aggregators = ScriptedAggregators(lambda request: reply if request.method == "POST" else None)
    files = await aggregators.serve(nursery)
    async with client(files) as uploader:
        with pytest.raises(UploadFailed, match=message) as error:
            await uploader.upload([0])
    assert error.value.type == type_
    assert aggregators.targets().count("reports") == 1


def listed(*configs: tuple[int, int, int, int, bytes]) -> bytes:
    return HpkeConfigList(tuple(HpkeConfig(*config) for config in configs)).encode()


async def test_an_unsupported_suite_is_passed_over(nursery: trio.Nursery) -> None:
    """The first configuration that is supported here is used."""
    aggregators = ScriptedAggregators()
    files = await aggregators.serve(nursery)
    unknown = (7, 0x7777, 1, 1, b"key")
    lists = iter([listed(unknown, aggregators.leader_keys[0].config), listed(unknown), b"\0\0"])

    def offer(request: Request) -> bytes | None:
        if not request.target.endswith("leader/hpke_config"):
            return None
        return answer(200, next(lists), Content_Type=MediaType.HPKE_CONFIG_LIST)

    aggregators.disturb = offer
    async with client(files) as uploader:
        assert await uploader.upload([0]) == Uploaded(1, ())
    async with client(files) as uploader:
        with pytest.raises(UploadFailed, match="none of the Leader's 1 HPKE configuration:"):
            await uploader.upload([0])
    async with client(files) as uploader:
        with pytest.raises(UploadFailed, match="the Leader's HpkeConfigList"):
            await uploader.upload([0])


@pytest.mark.parametrize(
    "key",
    [
        (X25519, bytes(31)),
        (X25519, bytes(32)),
        ((0x0010, 0x0001, 0x0001), b"\4" + bytes(64)),
    ],
    ids=["short", "of small order", "not on the curve"],
)
async def test_an_invalid_key_is_passed_over(
    nursery: trio.Nursery, key: tuple[tuple[int, int, int], bytes]
) -> None:
    """The Client uses the next configuration, as it does after an unsupported suite."""
    aggregators = ScriptedAggregators()
    files = await aggregators.serve(nursery)
    suite, public = key
    invalid = (7, *suite, public)
    lists = iter([listed(invalid, aggregators.leader_keys[0].config), listed(invalid)])

    def offer(request: Request) -> bytes | None:
        if not request.target.endswith("leader/hpke_config"):
            return None
        return answer(200, next(lists), Content_Type=MediaType.HPKE_CONFIG_LIST)

    aggregators.disturb = offer
    async with client(files) as uploader:
        assert await uploader.upload([0]) == Uploaded(1, ())
    async with client(files) as uploader:
        with pytest.raises(UploadFailed, match=r"none of the Leader's 1 .* the key is invalid"):
            await uploader.upload([0])


async def test_a_list_with_an_id_twice_is_refused(nursery: trio.Nursery) -> None:
    """The Leader could not tell the keys apart, so the Client uploads nothing."""
    aggregators = ScriptedAggregators()
    files = await aggregators.serve(nursery)
    aggregators.leader_keys += [HpkeKeypair.generate(1, *X25519)]
    async with client(files) as uploader:
        with pytest.raises(
            UploadFailed, match=r"HpkeConfigList .*: a second HpkeConfig .* id 1 at"
        ):
            await uploader.upload([0])
    assert "reports" not in aggregators.targets()


async def test_a_measurement_that_cannot_be_encoded_is_named(nursery: trio.Nursery) -> None:
    """The batches before it have arrived, its own was not sent."""
    aggregators = ScriptedAggregators()
    files = await aggregators.serve(nursery)
    async with client(files, batch_size=2) as uploader:
        with pytest.raises(ValueError, match=r"counted from measurement 2"):
            await uploader.upload([0, 1, 2, 4])
    assert aggregators.accepted == 2


@pytest.mark.parametrize("party", ["leader", "helper"])
async def test_b7_nothing_is_sent_over_http_beyond_loopback(
    nursery: trio.Nursery, party: str
) -> None:
    """Unless permitted: an attacker could replace both HPKE keys and read every measurement."""
    aggregators = ScriptedAggregators()
    await aggregators.serve(nursery)
    url = aggregators.server.url
    ends = {"leader": f"{url}/leader/", "helper": f"{url}/helper"}
    ends[party] = beyond_loopback(ends[party])
    keys = {f"{name}_aggregator_endpoint": end for name, end in ends.items()}
    files = aggregators.files = make_task(url, **keys)
    with pytest.raises(UsageError, match=rf"^{party}_aggr.* https://, or .*allow_insecure_http"):
        client(files)
    assert not aggregators.server.requests
    async with client(files, allow_insecure_http=True) as uploader:
        assert await uploader.upload([0]) == Uploaded(1, ())


def test_a_batch_has_at_least_one_report() -> None:
    """An endless loop of empty requests is not possible."""
    with pytest.raises(ValueError, match="batch_size is 0"):
        Client("client.toml", batch_size=0)
