"""Properties of every message and every input."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from dapd.errors import DecodeError
from dapd.messages.aggregation import AggregationJobContinueHead, AggregationJobInitHead
from dapd.messages.codec import Message
from dapd.messages.collection import (
    AggregateShare,
    AggregateShareAad,
    AggregateShareReq,
    BatchSelector,
    CollectionJobReq,
    CollectionJobResp,
    Query,
)
from dapd.messages.common import (
    Extension,
    HpkeCiphertext,
    HpkeConfig,
    HpkeConfigList,
    Interval,
    b64url_decode,
    b64url_encode,
)
from dapd.messages.task import VDAF_CONFIGURATIONS, TaskConfiguration
from tests.messages import strategies

Head = AggregationJobInitHead | AggregationJobContinueHead
T = TypeVar("T")
TYPES: list[type[Message]] = [
    AggregateShare,
    AggregateShareAad,
    AggregateShareReq,
    BatchSelector,
    CollectionJobReq,
    CollectionJobResp,
    Extension,
    HpkeCiphertext,
    HpkeConfig,
    HpkeConfigList,
    Interval,
    Query,
    TaskConfiguration,
    *VDAF_CONFIGURATIONS,
]


def _try(decode: Callable[[bytes], T], data: bytes) -> T | DecodeError:
    try:
        return decode(data)
    except DecodeError as error:
        return error


def _check_answer(kind: type[Message], data: bytes) -> None:
    """Check that ``data`` is canonical or fails with a ``DecodeError`` at an offset inside it."""
    answer = _try(kind.decode, data)
    if isinstance(answer, DecodeError):
        assert 0 <= answer.offset <= len(data)
    else:
        assert answer.encode() == data


def _mutated(data: bytes, edits: list[tuple[int, int]]) -> bytes:
    """Overwrite bytes; an edit with a value above 255 cuts or extends the data instead."""
    changed = bytearray(data)
    for place, value in edits:
        if changed and value < 256:
            changed[place % len(changed)] = value
        elif value < 300:
            del changed[place % (len(changed) + 1) :]
        else:
            changed += bytes(value - 300)
    return bytes(changed)


EDITS = st.lists(st.tuples(st.integers(0, 500), st.integers(0, 310)), min_size=1, max_size=4)


@given(strategies.messages)
def test_what_is_encoded_decodes_to_the_same(message: Message) -> None:
    """decode(encode(x)) == x."""
    assert type(message).decode(message.encode()) == message


@given(strategies.messages, EDITS)
def test_whatever_decodes_encodes_to_the_same_bytes(
    message: Message, edits: list[tuple[int, int]]
) -> None:
    """encode(decode(b)) == b for every b that decodes; else a DecodeError inside the input."""
    _check_answer(type(message), _mutated(message.encode(), edits))


@pytest.mark.parametrize("kind", TYPES)
@given(data=st.binary(max_size=200))
def test_random_bytes_raise_nothing_but_decode_error(kind: type[Message], data: bytes) -> None:
    """Nothing that a peer sends ends in a traceback, and what decodes is canonical."""
    _check_answer(kind, data)


@given(strategies.messages, st.data())
def test_every_shorter_input_is_refused(message: Message, data: st.DataObject) -> None:
    """A prefix of a message is never a message, and the error's offset lies within it."""
    encoded = message.encode()
    if not encoded:
        return
    cut = data.draw(st.integers(0, len(encoded) - 1))
    with pytest.raises(DecodeError) as caught:
        type(message).decode(encoded[:cut])
    assert caught.value.offset <= cut


@given(strategies.messages, st.binary(min_size=1, max_size=5))
def test_trailing_bytes_are_refused_where_they_start(message: Message, trailing: bytes) -> None:
    """A message must fill the whole input."""
    encoded = message.encode()
    with pytest.raises(DecodeError) as caught:
        type(message).decode(encoded + trailing)
    assert caught.value.offset == len(encoded)


@given(strategies.init_heads | strategies.continue_heads, st.binary(max_size=20))
def test_a_head_ends_where_the_reports_start(head: Head, reports: bytes) -> None:
    """The offset is that of the first report, whatever follows."""
    encoded = head.encode()
    assert type(head).decode(encoded + reports) == (head, len(encoded))


@given(strategies.init_heads | strategies.continue_heads, st.binary(max_size=20), EDITS)
def test_a_head_that_decodes_encodes_to_the_bytes_before_its_offset(
    head: Head,
    reports: bytes,
    edits: list[tuple[int, int]],
) -> None:
    """Whatever a peer has made of it; else a DecodeError inside the input."""
    data = _mutated(head.encode() + reports, edits)
    decode: Callable[[bytes], tuple[Head, int]] = type(head).decode
    answer = _try(decode, data)
    if isinstance(answer, DecodeError):
        assert 0 <= answer.offset <= len(data)
    else:
        decoded, offset = answer
        assert decoded.encode() == data[:offset]


@given(st.binary(max_size=70))
def test_base64url_comes_back(data: bytes) -> None:
    """b64url_decode is the inverse of b64url_encode."""
    assert b64url_decode(b64url_encode(data)) == data


@given(st.text("AQgw-_8=+/ ", max_size=8) | st.text(st.characters(max_codepoint=300), max_size=12))
@example("AQ")  # "AR" would be the same byte, if spare bits were ignored
def test_base64url_is_unique(text: str) -> None:
    """Only one text encodes given bytes, so an id has one URL."""
    try:
        data = b64url_decode(text)
    except ValueError:
        return
    assert b64url_encode(data) == text
