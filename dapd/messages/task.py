"""``TaskConfiguration``, its extension and the VDAF configurations.

Sections "Task Configuration", "Task Interval Task Extension", "VDAF Configuration Encodings".
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Self

from dapd.errors import DecodeError
from dapd.messages.codec import Message, Reader, opaque, uint
from dapd.messages.common import (
    BatchMode,
    Extension,
    Extensions,
    Interval,
    encode_extensions,
    read_extensions,
)

TASK_INTERVAL = 1
"""The codepoint of the ``task_interval`` task extension."""


@dataclass(frozen=True, slots=True)
class Prio3Count(Message):
    """The configuration of Prio3Count, which is ``Empty``."""

    vdaf_type: ClassVar[int] = 1
    kind: ClassVar[str] = "count"

    @classmethod
    def read(cls, reader: Reader) -> Self:  # noqa: ARG003 - nothing to read
        return cls()

    def encode(self) -> bytes:
        return b""


@dataclass(frozen=True, slots=True)
class Prio3Sum(Message):
    """``Prio3SumConfig``."""

    vdaf_type: ClassVar[int] = 2
    kind: ClassVar[str] = "sum"
    max_measurement: int

    @classmethod
    def read(cls, reader: Reader) -> Self:
        return cls(reader.uint(8, "max_measurement"))

    def encode(self) -> bytes:
        return uint(self.max_measurement, 8)


@dataclass(frozen=True, slots=True)
class Prio3SumVec(Message):
    """``Prio3SumVecConfig``."""

    vdaf_type: ClassVar[int] = 3
    kind: ClassVar[str] = "sumvec"
    length: int
    max_measurement: int
    chunk_length: int

    @classmethod
    def read(cls, reader: Reader) -> Self:
        return cls(
            reader.uint(4, "length"),
            reader.uint(8, "max_measurement"),
            reader.uint(4, "chunk_length"),
        )

    def encode(self) -> bytes:
        return uint(self.length, 4) + uint(self.max_measurement, 8) + uint(self.chunk_length, 4)


@dataclass(frozen=True, slots=True)
class Prio3Histogram(Message):
    """``Prio3HistogramConfig``."""

    vdaf_type: ClassVar[int] = 4
    kind: ClassVar[str] = "histogram"
    length: int
    chunk_length: int

    @classmethod
    def read(cls, reader: Reader) -> Self:
        return cls(reader.uint(4, "length"), reader.uint(4, "chunk_length"))

    def encode(self) -> bytes:
        return uint(self.length, 4) + uint(self.chunk_length, 4)


@dataclass(frozen=True, slots=True)
class Prio3MultihotCountVec(Message):
    """``Prio3MultihotCountVecConfig``."""

    vdaf_type: ClassVar[int] = 5
    kind: ClassVar[str] = "multihotcountvec"
    length: int
    chunk_length: int
    max_weight: int

    @classmethod
    def read(cls, reader: Reader) -> Self:
        return cls(
            reader.uint(4, "length"), reader.uint(4, "chunk_length"), reader.uint(8, "max_weight")
        )

    def encode(self) -> bytes:
        return uint(self.length, 4) + uint(self.chunk_length, 4) + uint(self.max_weight, 8)


VdafConfiguration = Prio3Count | Prio3Sum | Prio3SumVec | Prio3Histogram | Prio3MultihotCountVec

VDAF_CONFIGURATIONS: tuple[type[VdafConfiguration], ...] = (
    Prio3Count,
    Prio3Sum,
    Prio3SumVec,
    Prio3Histogram,
    Prio3MultihotCountVec,
)
_BY_TYPE = {each.vdaf_type: each for each in VDAF_CONFIGURATIONS}


@dataclass(frozen=True, slots=True)
class TaskConfiguration(Message):
    """``TaskConfiguration``. Endpoints keep the URLs' ASCII byte for byte (rule B7).

    ``batch_config`` has no field here, because it is empty in both batch modes.
    """

    task_info: bytes
    leader_aggregator_endpoint: str
    helper_aggregator_endpoint: str
    time_precision: int
    min_batch_size: int
    batch_mode: BatchMode
    vdaf: VdafConfiguration
    extensions: Extensions = ()

    @property
    def task_interval(self) -> Interval | None:
        """The interval of the ``task_interval`` extension, in time precisions, if there is one."""
        for extension in self.extensions:
            if extension.type == TASK_INTERVAL:
                return Interval.decode(extension.data)
        return None

    @classmethod
    def read(cls, reader: Reader) -> Self:
        return cls(
            task_info=reader.opaque(1, "task_info", 1),
            leader_aggregator_endpoint=_read_url(reader, "leader_aggregator_endpoint"),
            helper_aggregator_endpoint=_read_url(reader, "helper_aggregator_endpoint"),
            time_precision=reader.uint(8, "time_precision"),
            min_batch_size=reader.uint(8, "min_batch_size"),
            batch_mode=_read_batch_mode(reader),
            vdaf=_read_vdaf(reader),
            extensions=_read_task_extensions(reader),
        )

    def encode(self) -> bytes:
        return b"".join(
            (
                opaque(self.task_info, 1, 1),
                opaque(self.leader_aggregator_endpoint.encode("ascii"), 2, 1),
                opaque(self.helper_aggregator_endpoint.encode("ascii"), 2, 1),
                uint(self.time_precision, 8),
                uint(self.min_batch_size, 8),
                uint(self.batch_mode, 1),
                opaque(b"", 2),
                uint(self.vdaf.vdaf_type, 4),
                opaque(self.vdaf.encode(), 2),
                encode_extensions(self.extensions),
            )
        )


def task_interval_extension(interval: Interval) -> Extension:
    """Build the ``task_interval`` task extension; ``interval`` is in time precisions."""
    return Extension(TASK_INTERVAL, interval.encode())


def _read_url(reader: Reader, what: str) -> str:
    start = reader.offset
    try:
        return reader.opaque(2, what, 1).decode("ascii")
    except UnicodeDecodeError:
        raise DecodeError(start, f"{what} is not ASCII") from None


def _read_batch_mode(reader: Reader) -> BatchMode:
    mode = BatchMode.read(reader)
    reader.vector(2, "batch_config").finish("the empty batch_config")
    return mode


def _read_vdaf(reader: Reader) -> VdafConfiguration:
    start = reader.offset
    vdaf_type = reader.uint(4, "vdaf_type")
    if vdaf_type not in _BY_TYPE:
        raise DecodeError(start, f"unknown VDAF type {vdaf_type}")
    inner = reader.vector(2, "vdaf_configuration")
    vdaf = _BY_TYPE[vdaf_type].read(inner)
    inner.finish("vdaf_configuration")
    return vdaf


def _read_task_extensions(reader: Reader) -> Extensions:
    start = reader.offset
    extensions = read_extensions(reader)
    for extension in extensions:
        if extension.type == TASK_INTERVAL and len(extension.data) != 16:
            raise DecodeError(start, "the task_interval extension must have 16 bytes")
    return extensions
