"""The search for secrets finds each spelling of what is planted, and nothing else."""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Callable

import pytest

from tests.hostile.search import found, spellings

SECRET = hashlib.sha256(b"a secret").digest() + b"'\"\\\n\x00\xff\xfb\xef"
BEFORE, AFTER = b"\x01before'", b"after\xfe"
PLANTS: dict[str, Callable[[bytes], bytes]] = {
    "raw": bytes,
    "utf-8": lambda message: message.decode("latin-1").encode(),
    "hex": lambda message: message.hex().encode(),
    "HEX": lambda message: message.hex().upper().encode(),
    "base64": base64.b64encode,
    "base64url": base64.urlsafe_b64encode,
    "base64url without padding": lambda message: base64.urlsafe_b64encode(message).rstrip(b"="),
    "repr": lambda message: repr(message).encode(),
    "repr in JSON": lambda message: json.dumps(repr(message)).encode(),
    "repr in repr in JSON": lambda message: json.dumps({"a": repr(repr(message))}).encode(),
    "JSON": lambda message: json.dumps(message.decode("latin-1")).encode(),
    "list": lambda message: str(list(message)).encode(),
}


@pytest.mark.parametrize("spelling", PLANTS)
@pytest.mark.parametrize("before", [BEFORE[:n] for n in range(len(BEFORE) + 1)])
def test_what_is_planted_is_found(spelling: str, before: bytes) -> None:
    """Alone and within a message, at each of the places that base64 tells apart."""
    said = b'{"error": "' + PLANTS[spelling](before + SECRET + AFTER) + b'"}'
    assert {name for name, _ in found({"secret": SECRET, "other": bytes(16)}, said)} == {"secret"}


def test_a_secret_in_the_url_is_found() -> None:
    said = "GET /tasks/" + "".join(f"%{byte:02X}" for byte in SECRET[-2:])
    assert found({"secret": SECRET[-2:] * 4}, (said + "%FB%EF" * 3).encode())


def test_each_spelling_is_found_by_its_name() -> None:
    """None of them is idle."""
    for name, text in spellings(SECRET):
        assert ("secret", name) in found({"secret": SECRET}, b"<" + text + b">")


def test_what_is_not_there_is_not_found() -> None:
    almost = bytes([SECRET[0] ^ 1]) + SECRET[1:]
    for plant in PLANTS.values():
        assert found({"secret": SECRET}, plant(BEFORE + almost + AFTER)) == []
