"""Looks for secrets in what was said, in every spelling in which bytes get into a text."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator, Mapping
from urllib.parse import quote_from_bytes

SHORTEST = 8
"""Bytes; anything shorter is found by chance."""


def spellings(secret: bytes) -> Iterator[tuple[str, bytes]]:
    """(name, text) of each; none depends on what stands around the secret in a message."""
    text = secret.decode("latin-1")
    yield "raw", secret
    yield "utf-8", text.encode()
    yield "hex", secret.hex().encode()
    yield "HEX", secret.hex().upper().encode()
    for offset in range(3):
        encoded = base64.b64encode(bytes(offset) + secret)
        # Without the characters that hold bits of a neighbour, or padding.
        inner = encoded[-(-offset * 8 // 6) : (offset + len(secret)) * 8 // 6]
        yield f"base64 at {offset}", inner
        yield f"base64url at {offset}", inner.replace(b"+", b"-").replace(b"/", b"_")
    yield "repr", repr(secret)[2:-1].encode()
    yield "JSON", json.dumps(text)[1:-1].encode()
    yield "list", str(list(secret))[1:-1].encode()
    yield "URL", quote_from_bytes(secret).encode()


def found(secrets: Mapping[str, bytes], said: bytes) -> list[tuple[str, str]]:
    """(secret, spelling) of all that ``said`` gives away, however often it was quoted."""
    bare = _unquoted(said)
    for name, secret in secrets.items():
        assert len(secret) >= SHORTEST, name
    return [
        (name, spelling)
        for name, secret in secrets.items()
        for spelling, text in spellings(secret)
        if text in said or _unquoted(text) in bare
    ]


def _unquoted(text: bytes) -> bytes:
    return text.translate(None, b"\\\"'")
