"""Types that several messages use, media types and base64url.

Sections "Basic Type Definitions", "HPKE Configuration Request", "Batch Modes", "Protocol Message
Media Type".
"""

from __future__ import annotations

import base64
import re
from collections.abc import Iterable
from dataclasses import dataclass
from enum import IntEnum, StrEnum
from typing import Self

from dapd.errors import DecodeError
from dapd.messages.codec import Message, Reader, opaque, uint

TASK_ID_SIZE = 32
REPORT_ID_SIZE = 16
BATCH_ID_SIZE = 32
CHECKSUM_SIZE = 32

_B64URL = re.compile(r"[A-Za-z0-9_-]*")


class Role(IntEnum):
    """``Role``."""

    COLLECTOR = 0
    CLIENT = 1
    LEADER = 2
    HELPER = 3


class BatchMode(IntEnum):
    """``BatchMode``. Unknown values raise ``DecodeError``."""

    TIME_INTERVAL = 1
    LEADER_SELECTED = 2

    @classmethod
    def read(cls, reader: Reader) -> BatchMode:
        """Read one byte. Raises ``DecodeError``."""
        start = reader.offset
        value = reader.uint(1, "batch_mode")
        try:
            return cls(value)
        except ValueError:
            raise DecodeError(start, f"unknown batch mode {value}") from None


class MediaType(StrEnum):
    """The media types of section "Protocol Message Media Type"."""

    HPKE_CONFIG_LIST = "application/ppm-dap;message=hpke-config-list"
    UPLOAD_REQ = "application/ppm-dap;message=upload-req"
    UPLOAD_ERRORS = "application/ppm-dap;message=upload-errors"
    AGGREGATION_JOB_INIT_REQ = "application/ppm-dap;message=aggregation-job-init-req"
    AGGREGATION_JOB_RESP = "application/ppm-dap;message=aggregation-job-resp"
    AGGREGATION_JOB_CONTINUE_REQ = "application/ppm-dap;message=aggregation-job-continue-req"
    AGGREGATE_SHARE_REQ = "application/ppm-dap;message=aggregate-share-req"
    AGGREGATE_SHARE = "application/ppm-dap;message=aggregate-share"
    COLLECTION_JOB_REQ = "application/ppm-dap;message=collection-job-req"
    COLLECTION_JOB_RESP = "application/ppm-dap;message=collection-job-resp"

    @property
    def message(self) -> str:
        """The value of the ``message`` parameter."""
        return self.value.partition("message=")[2]


@dataclass(frozen=True, slots=True, order=True)
class Interval(Message):
    """``Interval``: half-open, in time precisions. ``end`` may exceed the largest ``Time``."""

    start: int
    duration: int

    @property
    def end(self) -> int:
        """The first time after the interval."""
        return self.start + self.duration

    @classmethod
    def read(cls, reader: Reader) -> Self:
        return cls(reader.uint(8, "interval.start"), reader.uint(8, "interval.duration"))

    def encode(self) -> bytes:
        return uint(self.start, 8) + uint(self.duration, 8)


@dataclass(frozen=True, slots=True)
class HpkeCiphertext(Message):
    """``HpkeCiphertext``."""

    config_id: int
    enc: bytes
    payload: bytes

    @classmethod
    def read(cls, reader: Reader) -> Self:
        return cls(
            reader.uint(1, "config_id"), reader.opaque(2, "enc", 1), reader.opaque(4, "payload", 1)
        )

    def encode(self) -> bytes:
        return uint(self.config_id, 1) + opaque(self.enc, 2, 1) + opaque(self.payload, 4, 1)


@dataclass(frozen=True, slots=True)
class HpkeConfig(Message):
    """``HpkeConfig``; unknown KEM, KDF and AEAD ids are allowed."""

    id: int
    kem_id: int
    kdf_id: int
    aead_id: int
    public_key: bytes

    @classmethod
    def read(cls, reader: Reader) -> Self:
        return cls(
            reader.uint(1, "id"),
            reader.uint(2, "kem_id"),
            reader.uint(2, "kdf_id"),
            reader.uint(2, "aead_id"),
            reader.opaque(2, "public_key", 1),
        )

    def encode(self) -> bytes:
        suite = uint(self.kem_id, 2) + uint(self.kdf_id, 2) + uint(self.aead_id, 2)
        return uint(self.id, 1) + suite + opaque(self.public_key, 2, 1)

    @property
    def as_tuple(self) -> tuple[int, int, int, int, bytes]:
        """The tuple that the Rust extension takes."""
        return (self.id, self.kem_id, self.kdf_id, self.aead_id, self.public_key)


@dataclass(frozen=True, slots=True)
class HpkeConfigList(Message):
    """``HpkeConfig HpkeConfigList<10..2^16-1>``, in decreasing order of preference; the ids are
    distinct.
    """

    configs: tuple[HpkeConfig, ...]

    @classmethod
    def read(cls, reader: Reader) -> Self:
        inner = reader.vector(2, "HpkeConfigList", 10)
        configs: dict[int, HpkeConfig] = {}
        while inner.remaining:
            start = inner.offset
            config = HpkeConfig.read(inner)
            if config.id in configs:
                raise DecodeError(start, f"a second HpkeConfig with the id {config.id}")
            configs[config.id] = config
        return cls(tuple(configs.values()))

    def encode(self) -> bytes:
        return opaque(b"".join(config.encode() for config in self.configs), 2, 10)


@dataclass(frozen=True, slots=True)
class Extension(Message):
    """A task, aggregation job or collection job extension, unchecked (rule B3)."""

    type: int
    data: bytes

    @classmethod
    def read(cls, reader: Reader) -> Self:
        return cls(reader.uint(2, "extension_type"), reader.opaque(2, "extension_data"))

    def encode(self) -> bytes:
        return uint(self.type, 2) + opaque(self.data, 2)


Extensions = tuple[Extension, ...]


def read_extensions(reader: Reader) -> Extensions:
    """Read ``extensions<0..2^16-1>``, in any order, repeated or not. Raises ``DecodeError``."""
    inner = reader.vector(2, "extensions")
    extensions = []
    while inner.remaining:
        extensions.append(Extension.read(inner))
    return tuple(extensions)


def encode_extensions(extensions: Iterable[Extension]) -> bytes:
    """Encode ``extensions<0..2^16-1>``. Raises ``ValueError`` if they are too long."""
    return opaque(b"".join(extension.encode() for extension in extensions), 2)


def b64url_encode(data: bytes) -> str:
    """Encode as unpadded base64url: the form of ids in URLs and of bytes in task files."""
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def b64url_decode(text: str) -> bytes:
    """Decode unpadded base64url. Raises ``ValueError`` for any other text, also with padding."""
    if not _B64URL.fullmatch(text) or len(text) % 4 == 1:
        raise ValueError("not unpadded base64url")
    data = base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))
    if b64url_encode(data) != text:
        raise ValueError("not unpadded base64url: its last character has stray bits")
    return data
