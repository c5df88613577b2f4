"""Messages written byte by byte from the draft, and the bounds that the draft gives."""

from __future__ import annotations

from typing import ClassVar

import pytest

from dapd.errors import DecodeError
from dapd.messages.aggregation import (
    AggregationJobContinueHead,
    AggregationJobInitHead,
    leader_selected_batch_id_extension,
)
from dapd.messages.collection import (
    AggregateShareAad,
    AggregateShareReq,
    BatchSelector,
    CollectionJobReq,
    CollectionJobResp,
    Query,
)
from dapd.messages.common import (
    BatchMode,
    Extension,
    HpkeCiphertext,
    HpkeConfig,
    HpkeConfigList,
    Interval,
    MediaType,
    b64url_decode,
)
from dapd.messages.task import (
    Prio3Count,
    Prio3Histogram,
    Prio3MultihotCountVec,
    Prio3Sum,
    Prio3SumVec,
    TaskConfiguration,
    VdafConfiguration,
    task_interval_extension,
)

TASK = TaskConfiguration(
    task_info=b"hi",
    leader_aggregator_endpoint="https://l.example/",
    helper_aggregator_endpoint="https://h.example/dap",
    time_precision=3600,
    min_batch_size=100,
    batch_mode=BatchMode.TIME_INTERVAL,
    vdaf=Prio3Histogram(length=10, chunk_length=4),
    extensions=(task_interval_extension(Interval(5, 7)),),
)
TASK_BYTES = (
    b"\x02hi"
    b"\x00\x12https://l.example/"
    b"\x00\x15https://h.example/dap"
    b"\x00\x00\x00\x00\x00\x00\x0e\x10"  # time_precision
    b"\x00\x00\x00\x00\x00\x00\x00\x64"  # min_batch_size
    b"\x01\x00\x00"  # batch_mode, batch_config
    b"\x00\x00\x00\x04"  # vdaf_type
    b"\x00\x08\x00\x00\x00\x0a\x00\x00\x00\x04"  # vdaf_configuration
    b"\x00\x14\x00\x01\x00\x10"  # extensions, task_interval
    b"\x00\x00\x00\x00\x00\x00\x00\x05\x00\x00\x00\x00\x00\x00\x00\x07"
)
REQUEST = CollectionJobReq(Query(Interval(1, 2)), b"", (Extension(9, b"x"),))
REQUEST_BYTES = (
    b"\x01\x00\x10\x00\x00\x00\x00\x00\x00\x00\x01\x00\x00\x00\x00\x00\x00\x00\x02"
    b"\x00\x00\x00\x00"  # agg_param
    b"\x00\x05\x00\x09\x00\x01x"
)


def test_task_configuration() -> None:
    """Section "Task Configuration", field by field."""
    assert TASK.encode() == TASK_BYTES
    assert TaskConfiguration.decode(TASK_BYTES) == TASK
    assert TASK.task_interval == Interval(5, 7)


class TestVdafConfigurations:
    """Section "VDAF Configuration Encodings", and the codepoints of the VDAF draft."""

    CASES: ClassVar[list[tuple[VdafConfiguration, int, bytes]]] = [
        (Prio3Count(), 1, b""),
        (Prio3Sum(255), 2, b"\0\0\0\0\0\0\0\xff"),
        (Prio3SumVec(2, 3, 4), 3, b"\0\0\0\x02\0\0\0\0\0\0\0\x03\0\0\0\x04"),
        (Prio3Histogram(2, 3), 4, b"\0\0\0\x02\0\0\0\x03"),
        (Prio3MultihotCountVec(2, 3, 4), 5, b"\0\0\0\x02\0\0\0\x03\0\0\0\0\0\0\0\x04"),
    ]

    @pytest.mark.parametrize(("vdaf", "codepoint", "encoded"), CASES)
    def test_encoding(self, vdaf: VdafConfiguration, codepoint: int, encoded: bytes) -> None:
        assert (vdaf.vdaf_type, vdaf.encode()) == (codepoint, encoded)


def test_hpke_config_list() -> None:
    """Section "HPKE Configuration Request"."""
    config = HpkeConfig(7, 0x20, 1, 1, b"\xaa\xbb")
    encoded = b"\x00\x0b\x07\x00\x20\x00\x01\x00\x01\x00\x02\xaa\xbb"
    assert HpkeConfigList((config,)).encode() == encoded
    assert HpkeConfigList.decode(encoded).configs == (config,)


def test_aggregation_job_init_head() -> None:
    """Section "Leader Initialization", with the extension of the leader-selected mode."""
    head = AggregationJobInitHead(3, b"", (leader_selected_batch_id_extension(b"\x11" * 32),))
    encoded = b"\x03" + b"\0\0\0\0" + b"\0\x24\0\x01\0\x20" + b"\x11" * 32
    assert head.encode() == encoded
    assert AggregationJobInitHead.decode(encoded + b"reports") == (head, len(encoded))


def test_aggregation_job_continue_head() -> None:
    """Section "Leader Continuation"; no VerifyContinue follows where the offset is the end."""
    assert AggregationJobContinueHead.decode(b"\x01\x02") == (AggregationJobContinueHead(258), 2)


def test_collection_job_req() -> None:
    """Section "Collection Job Initialization", both batch modes."""
    assert REQUEST.encode() == REQUEST_BYTES
    assert CollectionJobReq.decode(REQUEST_BYTES) == REQUEST
    assert CollectionJobReq(Query(None)).encode() == b"\x02\0\0" + b"\0\0\0\0" + b"\0\0"


def test_collection_job_resp() -> None:
    """Section "Collection Job Initialization"."""
    share = HpkeCiphertext(1, b"e", b"pp")
    share_bytes = b"\x01\0\x01e\0\0\0\x02pp"
    encoded = b"\0\0\0\0\0\0\0\x09" + Interval(1, 2).encode() + share_bytes + share_bytes
    assert CollectionJobResp(9, Interval(1, 2), share, share).encode() == encoded


def test_aggregate_share_req_keeps_the_collectors_bytes() -> None:
    """Section "Obtaining Aggregate Shares"; the AAD binds exactly these bytes."""
    encoded = REQUEST_BYTES + b"\x02\0\x20" + b"\x22" * 32 + b"\0\0\0\0\0\0\0\x05" + b"\x33" * 32
    request = AggregateShareReq.decode(encoded)
    assert request == AggregateShareReq(REQUEST, BatchSelector(b"\x22" * 32), 5, b"\x33" * 32)
    assert request.collection_job_req.encode() == REQUEST_BYTES


def test_aggregate_share_aad() -> None:
    """Section "Aggregate Share Encryption"."""
    aad = AggregateShareAad(b"\x44" * 32, TASK, REQUEST)
    assert aad.encode() == b"\x44" * 32 + TASK_BYTES + REQUEST_BYTES


def test_batch_selector_of_an_interval() -> None:
    """Section "Time Interval"."""
    assert BatchSelector(Interval(1, 2)).encode() == b"\x01\0\x10" + Interval(1, 2).encode()
    assert BatchSelector(Interval(1, 2)).batch_mode is BatchMode.TIME_INTERVAL


def test_media_types() -> None:
    """Section "Protocol Message Media Type"."""
    assert str(MediaType.UPLOAD_REQ) == "application/ppm-dap;message=upload-req"
    assert MediaType.UPLOAD_REQ.message == "upload-req"


class TestBounds:
    """Every lower bound of the draft, with the offset of the length that breaks it."""

    def test_hpke_config_list_of_less_than_ten_bytes(self) -> None:
        for encoded in (b"\0\0", b"\0\x09\x07\0\x20\0\x01\0\x01\0\0"):
            with pytest.raises(DecodeError) as caught:
                HpkeConfigList.decode(encoded)
            assert caught.value.offset == 0
        with pytest.raises(ValueError, match="can't hold 0 bytes"):
            HpkeConfigList(()).encode()

    def test_two_hpke_configs_of_one_id(self) -> None:
        """Section "HPKE Configuration Request": Aggregators MUST allocate distinct ids."""
        config = b"\x07\0\x20\0\x01\0\x01\0\x01k"
        with pytest.raises(DecodeError, match="a second HpkeConfig with the id 7") as caught:
            HpkeConfigList.decode(bytes([0, 2 * len(config)]) + config + config)
        assert caught.value.offset == 2 + len(config)

    def test_empty_enc(self) -> None:
        with pytest.raises(DecodeError) as caught:
            HpkeCiphertext.decode(b"\x01\0\0\0\0\0\x01p")
        assert caught.value.offset == 1

    def test_empty_payload(self) -> None:
        with pytest.raises(DecodeError) as caught:
            HpkeCiphertext.decode(b"\x01\0\x01e\0\0\0\0")
        assert caught.value.offset == 4

    def test_empty_public_key(self) -> None:
        with pytest.raises(DecodeError) as caught:
            HpkeConfig.decode(b"\x07\0\x20\0\x01\0\x01\0\0")
        assert caught.value.offset == 7

    def test_b7_empty_task_info(self) -> None:
        """task_info has at least one byte."""
        with pytest.raises(DecodeError) as caught:
            TaskConfiguration.decode(b"\0" + TASK_BYTES[3:])
        assert caught.value.offset == 0

    def test_task_info_of_256_bytes(self) -> None:
        with pytest.raises(ValueError, match="can't hold 256 bytes"):
            TaskConfiguration(
                b"x" * 256, "l", "h", 1, 1, BatchMode.TIME_INTERVAL, Prio3Count()
            ).encode()

    def test_empty_endpoint(self) -> None:
        with pytest.raises(DecodeError) as caught:
            TaskConfiguration.decode(b"\x02hi\0\0" + TASK_BYTES[23:])
        assert caught.value.offset == 3


class TestClosedChoices:
    """Unknown values of closed enums, and configurations of another length than their mode's."""

    @pytest.mark.parametrize("mode", [0, 3, 255])
    def test_unknown_batch_mode(self, mode: int) -> None:
        for kind in (Query, BatchSelector):
            with pytest.raises(DecodeError, match=f"unknown batch mode {mode} at byte 0"):
                kind.decode(bytes([mode]) + b"\0\0")

    def test_unknown_vdaf_type(self) -> None:
        place = TASK_BYTES.index(b"\0\0\0\x04\0\x08")
        with pytest.raises(DecodeError, match=f"unknown VDAF type 9 at byte {place}"):
            TaskConfiguration.decode(TASK_BYTES[:place] + b"\0\0\0\x09" + TASK_BYTES[place + 4 :])

    @pytest.mark.parametrize("size", [0, 15, 17])
    def test_interval_config_of_a_wrong_length(self, size: int) -> None:
        for kind in (Query, BatchSelector):
            with pytest.raises(DecodeError):
                kind.decode(b"\x01\0" + bytes([size]) + bytes(size))

    def test_leader_selected_query_with_a_config(self) -> None:
        with pytest.raises(DecodeError) as caught:
            Query.decode(b"\x02\0\x01x")
        assert caught.value.offset == 3

    @pytest.mark.parametrize("size", [0, 31, 33])
    def test_batch_id_of_a_wrong_length(self, size: int) -> None:
        with pytest.raises(DecodeError):
            BatchSelector.decode(b"\x02\0" + bytes([size]) + bytes(size))

    def test_batch_config_that_is_not_empty(self) -> None:
        place = TASK_BYTES.index(b"\x01\0\0\0\0\0\x04")
        with pytest.raises(DecodeError) as caught:
            TaskConfiguration.decode(TASK_BYTES[: place + 1] + b"\0\x01x" + TASK_BYTES[place + 3 :])
        assert caught.value.offset == place + 3

    def test_task_interval_that_is_no_interval(self) -> None:
        place = TASK_BYTES.index(b"\0\x14\0\x01")
        with pytest.raises(DecodeError) as caught:
            TaskConfiguration.decode(TASK_BYTES[:place] + b"\0\x05\0\x01\0\x01x")
        assert caught.value.offset == place

    def test_endpoint_beyond_ascii(self) -> None:
        with pytest.raises(DecodeError, match="leader_aggregator_endpoint is not ASCII at byte 3"):
            TaskConfiguration.decode(b"\x02hi\0\x01\xff" + TASK_BYTES[23:])


def test_b3_extensions_are_not_judged() -> None:
    """Unknown, repeated and unsorted extensions decode; protocol/ checks them."""
    extensions = (Extension(5, b""), Extension(3, b"x"), Extension(5, b"y"))
    head = AggregationJobInitHead(0, b"p", extensions)
    assert AggregationJobInitHead.decode(head.encode())[0].extensions == extensions


def test_no_value_is_judged() -> None:
    """An interval that overflows decodes; protocol/ rejects it."""
    far = Interval(2**64 - 1, 2**64 - 1)
    assert Query.decode(Query(far).encode()).batch_interval == far
    assert far.end == 2**65 - 2


@pytest.mark.parametrize("text", ["A", "AB==", "AA=", "A A", "AA\n", "+/+/", "AB", "é"])
def test_base64url_refuses_other_spellings(text: str) -> None:
    """Padding, blanks, the standard alphabet and stray bits are refused."""
    with pytest.raises(ValueError, match="not unpadded base64url"):
        b64url_decode(text)
