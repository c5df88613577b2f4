"""When an HPKE key pair is published, replaced and deleted.

    pending -> active -> expired -> deleted

A key pair is never in a state again that it has left. All but deleted ones open reports; the
active ones are published. Section "HPKE Configuration Request", rule F1. Each HPKE suite that is
published has its own succession. Times are milliseconds by the safe clock (rule D6), so that
nothing moves while that one is held. Left out: the key pairs themselves.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

Suite = tuple[int, int, int]
"""The ids of KEM, KDF and AEAD."""

MANDATORY_SUITE: Suite = (0x0020, 0x0001, 0x0001)
"""DHKEM(X25519, HKDF-SHA256), HKDF-SHA256, AES-128-GCM (section "Compliance Requirements")."""

SUITES: dict[str, Suite] = {
    "x25519-aes128": MANDATORY_SUITE,
    "x25519-chacha20": (0x0020, 0x0001, 0x0003),
    "p256-aes128": (0x0010, 0x0001, 0x0001),
}
"""What ``dapd key add`` makes, by name."""

IDS = 256


class KeyState(StrEnum):
    """How far a key pair has come."""

    PENDING = "pending"
    """Not published yet: it first reaches every process, and the backups."""
    ACTIVE = "active"
    EXPIRED = "expired"
    """Not published any more, but Clients may still have it in a cache, or reports sealed to it."""
    DELETED = "deleted"
    """A tombstone without a private key, which says how long its id has been unused."""


@dataclass(frozen=True, slots=True)
class StoredKey:
    """A key pair without its keys; ``changed_at`` is when it came into its state."""

    config_id: int
    suite: Suite
    state: KeyState
    changed_at: int


@dataclass(frozen=True, slots=True)
class KeyTimes:
    """How long a key is ``pending``, ``active``, and ``kept`` after that; ``None``: for ever."""

    pending: int
    active: int
    kept: int | None


@dataclass(frozen=True, slots=True)
class Move:
    """A key goes from the state ``was`` to ``to``; of a new one the id was ``DELETED``, or new."""

    config_id: int
    suite: Suite
    was: KeyState
    to: KeyState


@dataclass(frozen=True, slots=True)
class Next:
    """What will become of a key by itself, and when; ``at`` is ``None`` for never."""

    to: KeyState
    at: int | None


def plan(stored: Sequence[StoredKey], now: int, times: KeyTimes) -> list[Move]:
    """The moves that are due. Made at once, they leave at least one key active.

    A time in the future counts as due, except for a deletion: the safe clock was wrong, and an
    operator has set it back.
    """
    if not _in_state(stored, KeyState.ACTIVE):
        return first_active(stored)
    moves, ids = [], free_ids(stored)
    for suite in sorted({key.suite for key in stored if key.state in _IN_SUCCESSION}):
        mine = [key for key in stored if key.suite == suite]
        pending, active = _in_state(mine, KeyState.PENDING), _in_state(mine, KeyState.ACTIVE)
        ready = [key for key in pending if _is_over(key, now, times.pending)]
        if ready:
            moves += promotion(ready[0], stored)
            continue
        moves += [_move(key, KeyState.EXPIRED) for key in active[:-1]]
        succession = times.active - times.pending
        if ids and active and not pending and _is_over(active[-1], now, succession):
            moves.append(Move(ids.pop(0), suite, KeyState.DELETED, KeyState.PENDING))
    return moves + [
        _move(key, KeyState.DELETED)
        for key in _in_state(stored, KeyState.EXPIRED)
        if times.kept is not None and now >= key.changed_at + times.kept
    ]


def first_active(stored: Sequence[StoredKey]) -> list[Move]:
    """The move after which a key is active where none is: it waits for no backup."""
    if _in_state(stored, KeyState.ACTIVE):
        return []
    if pending := _in_state(stored, KeyState.PENDING):
        return [_move(pending[0], KeyState.ACTIVE)]
    ids = free_ids(stored)
    return [Move(ids[0], MANDATORY_SUITE, KeyState.DELETED, KeyState.ACTIVE)] if ids else []


def promotion(key: StoredKey, stored: Sequence[StoredKey]) -> list[Move]:
    """A pending key becomes active, in the place of those of its suite that are."""
    return [_move(key, KeyState.ACTIVE), *replaced(key.suite, stored)]


def replaced(suite: Suite, stored: Sequence[StoredKey]) -> list[Move]:
    """The active keys of a suite expire, since a new one is active."""
    return [
        _move(key, KeyState.EXPIRED)
        for key in _in_state(stored, KeyState.ACTIVE)
        if key.suite == suite
    ]


def free_ids(stored: Sequence[StoredKey]) -> list[int]:
    """The ids that a new key may get, those unused for the longest time first (rule F1)."""
    used = {key.config_id for key in stored}
    gone = _in_state(stored, KeyState.DELETED)
    return [number for number in range(IDS) if number not in used] + [key.config_id for key in gone]


def next_of(key: StoredKey, stored: Sequence[StoredKey], times: KeyTimes) -> Next:
    """What ``plan`` will do with a key, if nobody interferes."""
    match key.state:
        case KeyState.PENDING:
            return Next(KeyState.ACTIVE, key.changed_at + times.pending)
        case KeyState.ACTIVE:
            pending = _in_state(stored, KeyState.PENDING)
            successor = next((each for each in pending if each.suite == key.suite), None)
            if successor is not None:
                return Next(KeyState.EXPIRED, successor.changed_at + times.pending)
            return Next(KeyState.EXPIRED, key.changed_at + times.active)
        case KeyState.EXPIRED | KeyState.DELETED:
            at = None if times.kept is None else key.changed_at + times.kept
            return Next(KeyState.DELETED, at)


_IN_SUCCESSION = (KeyState.PENDING, KeyState.ACTIVE)


def _in_state(stored: Sequence[StoredKey], state: KeyState) -> list[StoredKey]:
    """Those in the state for the longest time first."""
    found = [key for key in stored if key.state is state]
    return sorted(found, key=lambda key: (key.changed_at, key.config_id))


def _is_over(key: StoredKey, now: int, duration: int) -> bool:
    return not 0 <= now - key.changed_at < duration


def _move(key: StoredKey, to: KeyState) -> Move:
    return Move(key.config_id, key.suite, key.state, to)
