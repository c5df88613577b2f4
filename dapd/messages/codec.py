"""Strict encoding and decoding of the presentation language of RFC 8446, section 3.

Short input, trailing bytes and lengths out of bounds raise ``DecodeError`` with the offset in the
whole message. Encoding checks the same bounds and raises ``ValueError``, which is a bug of ours.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Self

from dapd.errors import DecodeError
from dapd.wording import count


class Reader:
    """A cursor over ``data[offset:end]``; offsets in errors count from the start of ``data``."""

    __slots__ = ("_data", "_end", "offset")

    def __init__(self, data: bytes, offset: int = 0, end: int | None = None) -> None:
        self._data = data
        self._end = len(data) if end is None else end
        self.offset = offset

    @property
    def remaining(self) -> int:
        """The number of unread bytes."""
        return self._end - self.offset

    def raw(self, size: int, what: str) -> bytes:
        """Read ``opaque what[size]``."""
        start = self._advance(size, what)
        return bytes(self._data[start : self.offset])

    def uint(self, size: int, what: str) -> int:
        """Read an unsigned integer of ``size`` bytes."""
        return int.from_bytes(self.raw(size, what))

    def opaque(self, size: int, what: str, minimum: int = 0) -> bytes:
        """Read ``opaque what<minimum..2^(8*size)-1>``."""
        inner = self.vector(size, what, minimum)
        return inner.raw(inner.remaining, what)

    def vector(self, size: int, what: str, minimum: int = 0) -> Reader:
        """Return a reader of the content of a vector whose length has ``size`` bytes."""
        start = self.offset
        length = self.uint(size, f"the length of {what}")
        if length < minimum:
            raise DecodeError(start, f"{what} has {count(length, 'byte')}, fewer than {minimum}")
        begin = self._advance(length, what)
        return Reader(self._data, begin, self.offset)

    def finish(self, what: str) -> None:
        """Raise ``DecodeError`` if bytes are left."""
        if self.remaining:
            raise DecodeError(self.offset, f"{count(self.remaining, 'trailing byte')} after {what}")

    def _advance(self, size: int, what: str) -> int:
        if size > self.remaining:
            raise DecodeError(
                self.offset, f"{what} needs {count(size, 'byte')}, but {self.remaining} remain"
            )
        start = self.offset
        self.offset += size
        return start


class Message(ABC):
    """A structure of the draft; ``read`` may leave bytes in the reader, ``decode`` may not."""

    __slots__ = ()

    @classmethod
    @abstractmethod
    def read(cls, reader: Reader) -> Self:
        """Read the structure from ``reader``. Raises ``DecodeError``."""

    @abstractmethod
    def encode(self) -> bytes:
        """Return the wire bytes. Raises ``ValueError`` for a field out of bounds."""

    @classmethod
    def decode(cls, data: bytes) -> Self:
        """Decode the whole of ``data``. Raises ``DecodeError``."""
        reader = Reader(data)
        message = cls.read(reader)
        reader.finish(cls.__name__)
        return message


def uint(value: int, size: int) -> bytes:
    """Encode an unsigned integer as ``size`` bytes, big-endian."""
    if not 0 <= value < 1 << 8 * size:
        raise ValueError(f"{value} is no unsigned integer of {count(size, 'byte')}")
    return value.to_bytes(size)


def opaque(data: bytes, size: int, minimum: int = 0) -> bytes:
    """Encode ``opaque data<minimum..2^(8*size)-1>``: a length of ``size`` bytes, then the data."""
    if not minimum <= len(data) < 1 << 8 * size:
        raise ValueError(
            f"a vector of {minimum} to 2^{8 * size}-1 bytes can't hold {count(len(data), 'byte')}"
        )
    return len(data).to_bytes(size) + data


def fixed(data: bytes, size: int) -> bytes:
    """Return ``data`` as ``opaque data[size]``, after checking its length."""
    if len(data) != size:
        raise ValueError(f"{count(len(data), 'byte')} where {size} belong")
    return data
