"""The VDAFs of DAP: configurations, instances, and the text form of measurements and results.

Their wire encoding is in ``dapd.messages.task``, the processing of reports in ``dapd.reports``.
Section "VDAF Configuration Encodings"; the VDAF draft, section 7.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import fields
from typing import assert_never

from dapd._native import Vdaf, merge, unshard
from dapd.messages.task import (
    VDAF_CONFIGURATIONS,
    Prio3Count,
    Prio3Histogram,
    Prio3MultihotCountVec,
    Prio3Sum,
    Prio3SumVec,
    VdafConfiguration,
)
from dapd.wording import count

__all__ = [
    "KINDS",
    "AggregateResult",
    "Measurement",
    "Vdaf",
    "VdafConfiguration",
    "default_chunk_length",
    "expected_measurement",
    "format_result",
    "make_config",
    "make_vdaf",
    "merge",
    "parse_measurement",
    "unshard",
]

Measurement = int | list[int]
AggregateResult = int | list[int]

KINDS: Mapping[str, type[VdafConfiguration]] = {each.kind: each for each in VDAF_CONFIGURATIONS}
"""The configuration class of each VDAF, by its name in files and on the command line."""


def make_vdaf(config: VdafConfiguration) -> Vdaf:
    """Build the instance for two aggregators. Raises ``ValueError``, naming the parameter."""
    parameters: dict[str, int] = {
        field.name: getattr(config, field.name) for field in fields(config)
    }
    return Vdaf(config.kind, **parameters)


def make_config(kind: str, parameters: Mapping[str, int]) -> VdafConfiguration:
    """Build a VDAF's configuration from its name and parameters.

    A missing ``chunk_length`` gets its default. Raises ``ValueError``, naming the parameter that is
    unknown, missing or bad.
    """
    cls = KINDS.get(kind)
    if cls is None:
        raise ValueError(f"unknown VDAF {kind!r}: it must be one of {', '.join(KINDS)}")
    given = dict(parameters)
    names = {field.name for field in fields(cls)}
    if superfluous := sorted(given.keys() - names):
        raise ValueError(f"VDAF {kind} takes no {superfluous[0]}")
    if "chunk_length" in names and "chunk_length" not in given:
        # If other parameters are wrong, the native constructor below says which.
        given["chunk_length"] = default_chunk_length(kind, given)
    Vdaf(kind, **given)
    return cls(**given)


def default_chunk_length(kind: str, parameters: Mapping[str, int]) -> int:
    """Return the square root of the encoded measurement's length, as the VDAF draft advises; 1 if
    the parameters give no length or the VDAF has no chunks.
    """
    length = max(parameters.get("length", 1), 1)
    if kind == Prio3SumVec.kind:
        length *= max(parameters.get("max_measurement", 1), 1).bit_length()
    elif kind == Prio3MultihotCountVec.kind:
        length += max(parameters.get("max_weight", 1), 1).bit_length()
    return max(math.isqrt(length), 1)


def expected_measurement(config: VdafConfiguration) -> str:
    """Return what a measurement looks like as text, for error messages after "use"."""
    match config:
        case Prio3Count():
            return "0 or 1"
        case Prio3Sum(max_measurement):
            return f"0 to {max_measurement}"
        case Prio3SumVec(length, max_measurement):
            return f"{count(length, 'number')} from 0 to {max_measurement}, separated by commas"
        case Prio3Histogram(length):
            return f"0 to {length - 1}"
        case Prio3MultihotCountVec(length, _, max_weight):
            numbers = count(length, "number")
            return f"{numbers} 0 or 1, separated by commas, whose sum is at most {max_weight}"
        case _:
            assert_never(config)


def parse_measurement(config: VdafConfiguration, text: str) -> Measurement:
    """Parse a measurement. Raises ``ValueError`` that says what to write instead."""
    try:
        values = [int(item) for item in text.split(",")]
    except ValueError:
        values = []
    if not _is_measurement(config, values):
        what = "bucket" if config.kind == Prio3Histogram.kind else f"{config.kind} measurement"
        raise ValueError(f"{text.strip()!r} is not a {what}; use {expected_measurement(config)}")
    match config:
        case Prio3Count() | Prio3Sum() | Prio3Histogram():
            return values[0]
        case Prio3SumVec() | Prio3MultihotCountVec():
            return values
        case _:
            assert_never(config)


def _is_measurement(config: VdafConfiguration, values: list[int]) -> bool:
    """Return whether the VDAF can encode these values; a scalar is a list of one."""
    match config:
        case Prio3Count():
            length, largest, total = 1, 1, 1
        case Prio3Sum(max_measurement):
            length, largest, total = 1, max_measurement, max_measurement
        case Prio3SumVec(length, max_measurement):
            largest, total = max_measurement, length * max_measurement
        case Prio3Histogram(buckets):
            length, largest, total = 1, buckets - 1, buckets - 1
        case Prio3MultihotCountVec(length, _, max_weight):
            largest, total = 1, max_weight
        case _:
            assert_never(config)
    in_range = all(0 <= value <= largest for value in values)
    return len(values) == length and in_range and sum(values) <= total


def format_result(result: AggregateResult) -> str:
    """Format a result: a number, or numbers separated by commas."""
    return str(result) if isinstance(result, int) else ",".join(map(str, result))
