"""Reading and writing the presentation language of RFC 8446, section 3, strictly.

A structure is read from a ``Reader``; short input, trailing bytes and lengths out of bounds are a
``DecodeError`` with the offset in the whole message. Writing checks the same bounds and raises
``ValueError``, which is this program's own mistake.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Self

from dapd.errors import DecodeError


class Reader:
    """A cursor over ``data[offset:end]``; offsets in errors count from the start of ``data``."""

    __slots__ = ("_data", "_end", "offset")

    def __init__(self, data: bytes, offset: int = 0, end: int | None = None) -> None:
        self._data = data
        self._end = len(data) if end is None else end
        self.offset = offset

    @property
    def remaining(self) -> int:
        """Bytes that are left."""
        return self._end - self.offset

    def raw(self, size: int, what: str) -> bytes:
        """``opaque what[size]``."""
        start = self._advance(size, what)
        return bytes(self._data[start : self.offset])

    def uint(self, size: int, what: str) -> int:
        """An unsigned integer of ``size`` bytes."""
        return int.from_bytes(self.raw(size, what))

    def opaque(self, size: int, what: str, minimum: int = 0) -> bytes:
        """``opaque what<minimum..2^(8*size)-1>``."""
        inner = self.vector(size, what, minimum)
        return inner.raw(inner.remaining, what)

    def vector(self, size: int, what: str, minimum: int = 0) -> Reader:
        """The content of a vector with a length of ``size`` bytes, as a reader of its own."""
        start = self.offset
        length = self.uint(size, f"the length of {what}")
        if length < minimum:
            raise DecodeError(start, f"{what} has {length} bytes, fewer than {minimum}")
        begin = self._advance(length, what)
        return Reader(self._data, begin, self.offset)

    def finish(self, what: str) -> None:
        """Nothing may follow."""
        if self.remaining:
            raise DecodeError(self.offset, f"{self.remaining} trailing bytes after {what}")

    def _advance(self, size: int, what: str) -> int:
        if size > self.remaining:
            raise DecodeError(
                self.offset, f"{what} needs {size} bytes, but {self.remaining} are left"
            )
        start = self.offset
        self.offset += size
        return start


class Message(ABC):
    """A structure of the draft: ``read`` takes it from a reader, ``decode`` from a whole input."""

    __slots__ = ()

    @classmethod
    @abstractmethod
    def read(cls, reader: Reader) -> Self:
        """The structure at the reader's place. Raises ``DecodeError``."""

    @abstractmethod
    def encode(self) -> bytes:
        """The wire bytes. Raises ``ValueError`` for a field out of its bounds."""

    @classmethod
    def decode(cls, data: bytes) -> Self:
        """The structure that is the whole of ``data``. Raises ``DecodeError``."""
        reader = Reader(data)
        message = cls.read(reader)
        reader.finish(cls.__name__)
        return message


def uint(value: int, size: int) -> bytes:
    """An unsigned integer of ``size`` bytes, big-endian."""
    if not 0 <= value < 1 << 8 * size:
        raise ValueError(f"{value} is no unsigned integer of {size} bytes")
    return value.to_bytes(size)


def opaque(data: bytes, size: int, minimum: int = 0) -> bytes:
    """``opaque data<minimum..2^(8*size)-1>``: a length of ``size`` bytes, then the data."""
    if not minimum <= len(data) < 1 << 8 * size:
        raise ValueError(
            f"{len(data)} bytes do not fit a vector of {minimum} to 2^{8 * size}-1 bytes"
        )
    return len(data).to_bytes(size) + data


def fixed(data: bytes, size: int) -> bytes:
    """``opaque data[size]``."""
    if len(data) != size:
        raise ValueError(f"{len(data)} bytes where {size} belong")
    return data
