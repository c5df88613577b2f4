"""VDAF parameters, measurements as text, and results."""

from __future__ import annotations

import hashlib
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dapd import vdaf
from dapd._native import shard
from dapd.messages.task import (
    Prio3Count,
    Prio3Histogram,
    Prio3MultihotCountVec,
    Prio3Sum,
    Prio3SumVec,
)

CONFIGS: list[vdaf.VdafConfiguration] = [
    Prio3Count(),
    Prio3Sum(100),
    Prio3SumVec(3, 7, 2),
    Prio3Histogram(4, 2),
    Prio3MultihotCountVec(5, 2, 2),
]


COMMAS = "separated by commas"


@pytest.mark.parametrize(
    ("config", "elements", "share"),
    list(zip(CONFIGS, [1, 7, 9, 4, 7], [8, 8, 48, 64, 80], strict=True)),
)
def test_an_instance_knows_its_lengths(
    config: vdaf.VdafConfiguration, elements: int, share: int
) -> None:
    """Field elements of a measurement, and bytes of an aggregate share (8 or 16 an element)."""
    instance = vdaf.make_vdaf(config)
    assert instance.measurement_len == elements
    assert instance.aggregate_share_len == share == len(vdaf.merge(instance, []))


@pytest.mark.parametrize(
    ("kind", "parameters", "reason"),
    [
        ("sums", {}, "kind must be count, sum, sumvec, histogram or multihotcountvec"),
        ("count", {"length": 1}, "count takes no length"),
        ("sum", {}, "sum needs max_measurement"),
        ("sum", {"max_measurement": 0}, "max_measurement must be a whole number from 1"),
        ("sum", {"max_measurement": 2**64 - 2**32 + 1}, "max_measurement must be"),
        ("sum", {"max_measurement": 2**200}, "max_measurement must be"),
        ("sum", {"max_measurement": 3, "chunk_length": 1}, "sum takes no chunk_length"),
        ("sumvec", {"length": 2, "max_measurement": 3}, "sumvec needs chunk_length"),
        ("sumvec", {"length": 2, "max_measurement": 2**64, "chunk_length": 1}, "max_measurement"),
        ("sumvec", {"length": 2**27, "max_measurement": 8, "chunk_length": 1}, "length is too big"),
        ("histogram", {"length": 0, "chunk_length": 1}, "length must be"),
        ("histogram", {"length": -1, "chunk_length": 1}, "length must be"),
        ("histogram", {"length": 2**64, "chunk_length": 1}, "length must be"),
        ("histogram", {"length": 4, "chunk_length": 0}, "chunk_length must be"),
        ("histogram", {"length": 4, "chunk_length": 2**32 - 1}, "chunk_length must be"),
        ("histogram", {"length": 4, "chunk_length": 2, "max_weight": 1}, "takes no max_weight"),
        ("multihotcountvec", {"length": 4, "chunk_length": 2, "max_weight": 5}, "max_weight must"),
        ("multihotcountvec", {"length": 4, "chunk_length": 2, "max_weight": 0}, "max_weight must"),
    ],
)
def test_a_bad_parameter_is_named(kind: str, parameters: dict[str, int], reason: str) -> None:
    """Unknown, missing, superfluous, out of range: each is a ValueError about that parameter."""
    with pytest.raises(ValueError, match=reason):
        vdaf.Vdaf(kind, **parameters)


def test_the_largest_parameters_are_taken() -> None:
    """The bounds of the fields and of the wire themselves are legal."""
    vdaf.Vdaf("sum", max_measurement=2**64 - 2**32)
    vdaf.Vdaf("sumvec", length=3, max_measurement=2**64 - 1, chunk_length=192)
    vdaf.Vdaf("multihotcountvec", length=4, chunk_length=7, max_weight=4)


@pytest.mark.parametrize(
    ("kind", "parameters", "chunk_length"),
    [
        ("histogram", {"length": 100}, 10),
        ("histogram", {"length": 1}, 1),
        ("sumvec", {"length": 10, "max_measurement": 255}, 8),
        ("multihotcountvec", {"length": 97, "max_weight": 4}, 10),
    ],
)
def test_chunk_length_defaults_to_the_square_root_of_the_encoded_length(
    kind: str, parameters: dict[str, int], chunk_length: int
) -> None:
    """The VDAF draft's advice, rounded down; a given one stays."""
    assert vdaf.default_chunk_length(kind, parameters) == chunk_length
    config = vdaf.make_config(kind, parameters)
    assert config == vdaf.make_config(kind, {**parameters, "chunk_length": chunk_length})


@pytest.mark.parametrize(
    ("kind", "parameters", "reason"),
    [
        ("sums", {}, "one of count, sum, sumvec, histogram, multihotcountvec"),
        ("histogram", {}, "needs length"),
        ("histogram", {"length": -4}, "length must be"),
        ("count", {"chunk_length": 3}, "takes no chunk_length"),
        ("sum", {"max": 3}, "takes no max"),
    ],
)
def test_a_configuration_by_name_says_what_is_wrong(
    kind: str, parameters: dict[str, int], reason: str
) -> None:
    """Also where the chunk length would have been computed from a bad parameter."""
    with pytest.raises(ValueError, match=reason):
        vdaf.make_config(kind, parameters)


@pytest.mark.parametrize(
    ("config", "text", "measurement"),
    [
        (Prio3Count(), "1", 1),
        (Prio3Sum(100), " 100\n", 100),
        (Prio3SumVec(3, 7, 2), "0, 7,3", [0, 7, 3]),
        (Prio3Histogram(4, 2), "3", 3),
        (Prio3MultihotCountVec(5, 2, 2), "0,1,0,0,1", [0, 1, 0, 0, 1]),
    ],
)
def test_text_becomes_a_measurement_that_shards(
    config: vdaf.VdafConfiguration, text: str, measurement: vdaf.Measurement
) -> None:
    """What is parsed is what ``shard`` takes."""
    assert vdaf.parse_measurement(config, text) == measurement
    shares = shard(vdaf.make_vdaf(config), bytes(32), [measurement], bytes(16))  # type: ignore[arg-type]
    assert [len(column) for column in shares] == [1, 1, 1]


@pytest.mark.parametrize(
    ("config", "text", "expected"),
    [
        (Prio3Count(), "2", "count measurement; use 0 or 1"),
        (Prio3Count(), "", "count measurement; use 0 or 1"),
        (Prio3Sum(100), "101", "sum measurement; use 0 to 100"),
        (Prio3Sum(100), "-1", "sum measurement; use 0 to 100"),
        (Prio3Sum(100), "1,2", "sum measurement; use 0 to 100"),
        (Prio3SumVec(3, 7, 2), "1,2", f"sumvec measurement; use 3 numbers from 0 to 7, {COMMAS}"),
        (Prio3SumVec(1, 7, 1), "8", f"sumvec measurement; use 1 number from 0 to 7, {COMMAS}"),
        (Prio3Histogram(13, 4), "13", "bucket; use 0 to 12"),
        (Prio3Histogram(13, 4), "x", "bucket; use 0 to 12"),
        (
            Prio3MultihotCountVec(5, 2, 2),
            "1,1,1,0,0",
            f"multihotcountvec measurement; use 5 numbers 0 or 1, {COMMAS}, whose sum is at most 2",
        ),
    ],
)
def test_a_bad_measurement_says_what_was_expected(
    config: vdaf.VdafConfiguration, text: str, expected: str
) -> None:
    """One line that repeats the text, and what to write instead."""
    with pytest.raises(ValueError, match="is not") as caught:
        vdaf.parse_measurement(config, text)
    assert str(caught.value) == f"{text!r} is not a {expected}"


@pytest.mark.parametrize(
    ("config", "bad"),
    list(zip(CONFIGS, [2, 101, [1, 2], 4, [1, 1, 1, 0, 0]], strict=True)),
)
def test_shard_names_the_place_of_a_bad_measurement(
    config: vdaf.VdafConfiguration, bad: vdaf.Measurement
) -> None:
    """The good ones around it do not hide it."""
    good: vdaf.Measurement = [0] * len(bad) if isinstance(bad, list) else 0
    if isinstance(config, Prio3SumVec):
        good = [0, 0, 0]
    with pytest.raises(ValueError, match="measurement 1 "):
        shard(vdaf.make_vdaf(config), bytes(32), [good, bad, good], bytes(48))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="measurement 0 must be"):
        shard(vdaf.make_vdaf(config), bytes(32), ["x"], bytes(16))  # type: ignore[arg-type]


def test_shard_wants_an_id_for_each_measurement() -> None:
    """And a task id of 32 bytes: both are bound into the shares."""
    instance = vdaf.make_vdaf(Prio3Count())
    with pytest.raises(ValueError, match="report_ids must be 2 x 16 bytes"):
        shard(instance, bytes(32), [1, 0], bytes(16))
    with pytest.raises(ValueError, match="task_id must be 32 bytes, not 3"):
        shard(instance, b"abc", [1], bytes(16))


def _as_bytes(values: list[int], size: int) -> bytes:
    """An encoded share: little-endian field elements."""
    return b"".join(value.to_bytes(size, "little") for value in values)


@given(st.lists(st.integers(0, 2**30), min_size=4, max_size=4), st.integers(0, 2**64))
def test_merging_and_unsharding_is_addition_in_the_field(values: list[int], mask: int) -> None:
    """Shares that differ by a mask of the field give the values back, whichever way merged."""
    modulus = 2**66 * 4611686018427387897 + 1
    instance = vdaf.make_vdaf(Prio3Histogram(4, 2))
    helper = _as_bytes([(-mask) % modulus] * 4, 16)
    leader = _as_bytes([(value + mask) % modulus for value in values], 16)
    zero = vdaf.merge(instance, [])
    assert vdaf.unshard(instance, leader, helper, 1) == values
    assert vdaf.unshard(instance, vdaf.merge(instance, iter([leader, helper])), zero, 1) == values


def test_a_share_of_another_vdaf_is_refused() -> None:
    """By its length, and by elements beyond the modulus."""
    instance = vdaf.make_vdaf(Prio3Sum(9))
    for bad in (b"", bytes(16), b"\xff" * 8):
        with pytest.raises(ValueError, match=f"share of {len(bad)} bytes"):
            vdaf.merge(instance, [bytes(8), bad])
        with pytest.raises(ValueError, match=f"share of {len(bad)} bytes"):
            vdaf.unshard(instance, bytes(8), bad, 1)


def test_results_are_numbers_beyond_64_bits_where_need_be() -> None:
    """A Prio3SumVec sums in a field of 128 bits."""
    instance = vdaf.make_vdaf(Prio3SumVec(1, 2**64 - 1, 8))
    share = _as_bytes([2**64 - 1], 16)
    assert vdaf.unshard(instance, share, share, 2) == [2**65 - 2]
    assert vdaf.format_result([1, 2]) == "1,2"
    assert vdaf.format_result(7) == "7"


def test_sharding_binds_report_id_and_task() -> None:
    """The same measurement never gives the same shares twice."""
    instance = vdaf.make_vdaf(Prio3Histogram(4, 2))
    ids = hashlib.sha256(b"ids").digest()
    _, leader, helper = shard(instance, bytes(32), [1, 1], ids)
    assert all(a != b for a, b in pairwise(leader))
    assert all(a != b for a, b in pairwise(helper))


@pytest.mark.parametrize("config", [Prio3Count(), Prio3Histogram(4, 2)])
def test_sharding_the_same_again_gives_other_shares(config: vdaf.VdafConfiguration) -> None:
    """``rand`` is sampled for each report; it does not follow from task, report id and measurement
    (section "Client Behavior").
    """
    instance = vdaf.make_vdaf(config)
    (_, leader, helper), (_, leader_again, helper_again) = (
        shard(instance, bytes(32), [0], bytes(16)) for _ in range(2)
    )
    assert leader != leader_again
    assert helper != helper_again
