"""Convert single values of a task file, in both directions.

The functions raise ``Fault``, which names the key, what is wrong with it and what to do.
"""

from __future__ import annotations

import difflib
import ipaddress
import json
import re
from collections.abc import Mapping
from dataclasses import fields
from datetime import UTC, date, datetime
from typing import Any
from urllib.parse import urlsplit

from dapd.config.loading import unknown_key
from dapd.crypto import HpkeKeypair, hpke_seal, hpke_supported
from dapd.errors import DecodeError, UsageError, printable
from dapd.messages.common import HpkeConfig, Interval, b64url_decode, b64url_encode
from dapd.messages.task import VdafConfiguration
from dapd.protocol.task import END_OF_TIME, MAX_UINT64
from dapd.vdaf import KINDS, make_config
from dapd.wording import count

# The characters allowed in a header value, without spaces, which HTTP would trim.
_TOKEN = re.compile(r"[\x21-\x7e]{1,1024}")
_URL = re.compile(r"[\x21-\x7e]{1,2000}")


class Fault(Exception):
    """A bad value: the key, what is wrong and what to do. Callers turn it into ``UsageError``."""

    def __init__(self, key: str, text: str) -> None:
        super().__init__(f"{key}: {text}")


def bytes_of(key: str, text: str, size: int | None = None) -> bytes:
    """Decode unpadded base64url, and check that it has ``size`` bytes."""
    try:
        data = b64url_decode(text)
    except ValueError as error:
        raise Fault(key, f"{error}; copy it without padding or spaces") from None
    if size is not None and len(data) != size:
        found = count(len(data), "byte")
        raise Fault(key, f"has {found}; it must have {size}, as unpadded base64url")
    return data


def token_of(key: str, text: str) -> str:
    """Return the token if it can be sent in a header."""
    if not _TOKEN.fullmatch(text):
        raise Fault(key, "not a token; it must be 1 to 1024 visible ASCII characters, no spaces")
    return text


def hpke_config_of(key: str, text: str) -> HpkeConfig:
    """Decode an ``HpkeConfig`` and check that dapd can encrypt to it."""
    try:
        config = HpkeConfig.decode(bytes_of(key, text))
    except DecodeError as error:
        raise Fault(key, f"not an encoded HpkeConfig ({error}); copy it again") from None
    if not hpke_supported(config.kem_id, config.kdf_id, config.aead_id):
        suite = f"KEM {config.kem_id:#06x}, KDF {config.kdf_id:#06x}, AEAD {config.aead_id:#06x}"
        raise Fault(key, f"{suite} is not supported; use X25519 with AES-128-GCM")
    try:
        hpke_seal(config.as_tuple, b"", b"", b"")
    except ValueError as error:
        raise Fault(key, f"its public key is not valid ({error}); copy it again") from None
    return config


def check_pair(config: HpkeConfig, private_key: bytes) -> None:
    """Raise ``Fault`` unless the private key belongs to the configuration."""
    try:
        enc, payload = hpke_seal(config.as_tuple, b"", b"", b"pair")
        HpkeKeypair(*config.as_tuple, private_key).open(b"", b"", enc, payload)
    except ValueError:
        raise Fault(
            "collector_hpke_private_key", "not the key of collector_hpke_config; copy both again"
        ) from None


def endpoint_of(key: str, url: str) -> str:
    """Return an Aggregator's URL, byte for byte, if it is a valid one (rule B7)."""
    try:
        parts = urlsplit(url)
        _ = parts.port
    except ValueError as error:
        raise Fault(
            key, f"{url!r} is not a URL ({error}); use one like https://a.example/"
        ) from None
    if (
        not _URL.fullmatch(url)
        or parts.scheme not in {"http", "https"}
        or not parts.hostname
        or set("@?#") & set(url)
    ):
        raise Fault(
            key,
            f"{url!r} is not an Aggregator's URL; use one like https://a.example/dap/, in ASCII, "
            "without user or query",
        )
    return url


def is_insecure(url: str) -> bool:
    """Return whether the URL is http:// to another machine (rule B7)."""
    parts = urlsplit(url)
    if parts.scheme != "http" or parts.hostname == "localhost":
        return False
    try:
        return not ipaddress.ip_address(parts.hostname or "").is_loopback
    except ValueError:
        return True


def vdaf_of(table: Mapping[str, int | str], *, complete: bool) -> VdafConfiguration:
    """Return the VDAF of a ``vdaf`` table.

    ``complete`` requires every parameter, so that no reader of a finished file uses a default.
    """
    kind = table.get("type")
    if kind is None:
        raise Fault("vdaf", f"without type; use one of {', '.join(KINDS)}")
    if not isinstance(kind, str) or kind not in KINDS:
        near = difflib.get_close_matches(str(kind), KINDS, n=1)
        remedy = f"did you mean `{near[0]}`?" if near else f"use one of {', '.join(KINDS)}"
        raise Fault("vdaf", f"unknown type `{printable(str(kind))}`; {remedy}")
    known = [each.name for each in fields(KINDS[kind])]
    numbers: dict[str, int] = {}
    for name, value in table.items():
        if name == "type":
            continue
        if name not in known:
            raise Fault("vdaf", unknown_key(name, known, _parameters_of(kind, known)))
        if not isinstance(value, int) or not 0 <= value <= MAX_UINT64:
            raise Fault("vdaf", f"{name} is {value!r}; it must be a number from 0 to 2^64-1")
        numbers[name] = value
    if complete and (absent := [name for name in known if name not in numbers]):
        raise Fault("vdaf", f"without {absent[0]}; copy the line from another party's file")
    try:
        return make_config(kind, numbers)
    except ValueError as error:
        raise Fault("vdaf", str(error)) from None


def _parameters_of(kind: str, names: list[str]) -> str:
    return f"{kind} takes {', '.join(names)}" if names else f"{kind} takes no parameters"


def vdaf_table(vdaf: VdafConfiguration) -> dict[str, int | str]:
    """Return the ``vdaf`` table of a task file, the inverse of ``vdaf_of``."""
    return {"type": vdaf.kind, **{each.name: getattr(vdaf, each.name) for each in fields(vdaf)}}


def parse_vdaf_spec(text: str) -> dict[str, int | str]:
    """Parse a VDAF like ``histogram:length=10,chunk_length=4`` into the table of a task file.

    Raises ``UsageError``; ``new_task`` checks whether the parameters fit the VDAF.
    """
    kind, _, rest = text.partition(":")
    table: dict[str, int | str] = {"type": kind.strip()}
    for part in filter(None, rest.split(",")):
        name, _, value = (each.strip() for each in part.partition("="))
        if not (name.isidentifier() and re.fullmatch(r"[0-9]{1,20}", value)):
            raise UsageError(
                f"vdaf: {part!r} is not a parameter; write the VDAF like histogram:length=10"
            )
        if name in table:
            raise UsageError(f"vdaf: {name} is given twice; give it once")
        table[name] = int(value)
    return table


def interval_of(value: tuple[Any, Any], precision: int) -> Interval:
    """Convert a file's ``task_interval``: (start, duration), as ``parse_interval`` takes them."""
    try:
        return parse_interval(value[0], value[1], precision)
    except ValueError as error:
        raise Fault("task_interval", str(error)) from None


def parse_interval(start: Any, duration: Any, precision: int) -> Interval:
    """Convert an interval of a file or command into time precisions, as on the wire (rule C7).

    ``start`` is seconds since the Epoch, a date (its midnight in UTC), a date and time with a zone,
    or one of these as text; ``duration`` is seconds. Raises ``ValueError`` that says what to write.
    """
    try:
        start = seconds_of(start)
    except ValueError as error:
        raise ValueError(f"the start {error}") from None
    if isinstance(duration, str):  # from the command line
        duration = _moment(duration)
    if isinstance(duration, bool) or not isinstance(duration, int) or duration < 1 or start < 0:
        raise ValueError("not an interval; give a start from 0 and a duration from 1, in seconds")
    if start + duration > END_OF_TIME * precision:
        raise ValueError("the interval ends after 2^64-1 time precisions; shorten it")
    if start % precision or duration % precision:
        raise ValueError(
            f"start {start} and duration {duration} must be multiples of time_precision, "
            f"{precision}"
        )
    return Interval(start // precision, duration // precision)


def seconds_of(value: Any) -> int:
    """Convert a moment to seconds since the Epoch. Raises ``ValueError`` that names the forms."""
    match _moment(value) if isinstance(value, str) else value:
        case datetime() as moment if moment.tzinfo is not None and not moment.microsecond:
            return int(moment.timestamp())
        case date() as day if not isinstance(day, datetime):
            return int(datetime(day.year, day.month, day.day, tzinfo=UTC).timestamp())
        case int() as seconds if not isinstance(seconds, bool):
            return seconds
        case _:
            raise ValueError("must be seconds, a date, or a time with a zone (Z)")


def _moment(text: str) -> int | date | None:
    if text.isascii() and text.isdecimal():
        return int(text)
    for parse in (date.fromisoformat, datetime.fromisoformat):
        try:
            return parse(text)
        except ValueError:
            continue
    return None


def text_of(value: Any) -> Any:
    """Return a field of a task as its value in a file."""
    match value:
        case bytes():
            return b64url_encode(value)
        case HpkeConfig():
            return b64url_encode(value.encode())
        case _:
            return value


def to_toml(value: Any) -> str:
    """Return a value as TOML. A task file's strings are ASCII, where JSON and TOML agree."""
    match value:
        case dict():
            items = ", ".join(f"{key} = {to_toml(each)}" for key, each in value.items())
            return f"{{ {items} }}"
        case _:
            return json.dumps(value)
