"""The rotation of HPKE key pairs: when each is published, replaced and deleted.

    pending -> active -> expired -> deleted

A key pair never returns to an earlier state. Active ones are published; all but deleted ones open
reports. Section "HPKE Configuration Request", rule F1. Each published HPKE suite is rotated on its
own. Times are milliseconds by the safe clock (rule D6), so nothing moves while that clock is held.
This module sees states and times only, never keys.
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
"""The suites that ``dapd key add`` offers, by name."""

IDS = 256


class KeyState(StrEnum):
    """The states of a key pair."""

    PENDING = "pending"
    """The key is not published yet, so that every process and a backup get it first."""
    ACTIVE = "active"
    """The key is published."""
    EXPIRED = "expired"
    """The key is no longer published; Clients may still cache it, or have sealed reports to it."""
    DELETED = "deleted"
    """A tombstone without a private key is left, to know how long the id has been unused."""


@dataclass(frozen=True, slots=True)
class StoredKey:
    """A key pair without its keys; ``changed_at`` is when it entered its state.

    ``cached_for`` is the longest time for which it was published to be cached, in milliseconds.
    """

    config_id: int
    suite: Suite
    state: KeyState
    changed_at: int
    cached_for: int = 0


@dataclass(frozen=True, slots=True)
class KeyTimes:
    """How long a key is ``pending``, then ``active``.

    Clients may now cache a key for ``max_age``. A report sealed to it lives for ``report_life`` at
    most; ``None`` means for ever.
    """

    pending: int
    active: int
    max_age: int
    report_life: int | None

    def kept(self, key: StoredKey) -> int | None:
        """Return for how long an expired key is kept; ``None`` means for ever.

        A Client seals a report at most twice the cache lifetime after the key has expired: the
        longest lifetime that was promised while the key was published counts.
        """
        if self.report_life is None:
            return None
        return 2 * max(key.cached_for, self.max_age) + self.report_life

    def deleted_at(self, key: StoredKey) -> int | None:
        """Return when an expired key may be deleted; ``None`` means never."""
        kept = self.kept(key)
        return None if kept is None else key.changed_at + kept


@dataclass(frozen=True, slots=True)
class Move:
    """A key's change of state from ``was`` to ``to``; ``was`` is ``DELETED`` for a new key."""

    config_id: int
    suite: Suite
    was: KeyState
    to: KeyState


@dataclass(frozen=True, slots=True)
class Next:
    """The next automatic change of a key's state, and its time; ``None`` means never."""

    to: KeyState
    at: int | None


def plan(stored: Sequence[StoredKey], now: int, times: KeyTimes) -> list[Move]:
    """Return the moves that are due. Made together, they leave at least one key active.

    A time in the future counts as due, except for a deletion: it means that the safe clock was
    wrong, and an operator has set it back.
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
        if (at := times.deleted_at(key)) is not None and now >= at
    ]


def first_active(stored: Sequence[StoredKey]) -> list[Move]:
    """Return the move that makes a key active at once if none is, without waiting for a backup."""
    if _in_state(stored, KeyState.ACTIVE):
        return []
    if pending := _in_state(stored, KeyState.PENDING):
        return [_move(pending[0], KeyState.ACTIVE)]
    ids = free_ids(stored)
    return [Move(ids[0], MANDATORY_SUITE, KeyState.DELETED, KeyState.ACTIVE)] if ids else []


def promotion(key: StoredKey, stored: Sequence[StoredKey]) -> list[Move]:
    """Return the moves that activate a pending key and expire the active ones of its suite."""
    return [_move(key, KeyState.ACTIVE), *replaced(key.suite, stored)]


def replaced(suite: Suite, stored: Sequence[StoredKey]) -> list[Move]:
    """Return the moves that expire the active keys of a suite."""
    return [
        _move(key, KeyState.EXPIRED)
        for key in _in_state(stored, KeyState.ACTIVE)
        if key.suite == suite
    ]


def free_ids(stored: Sequence[StoredKey]) -> list[int]:
    """Return the ids for new keys, those unused for the longest time first (rule F1)."""
    used = {key.config_id for key in stored}
    gone = _in_state(stored, KeyState.DELETED)
    return [number for number in range(IDS) if number not in used] + [key.config_id for key in gone]


def next_of(key: StoredKey, stored: Sequence[StoredKey], times: KeyTimes) -> Next:
    """Predict what ``plan`` will do with a key, if no operator interferes."""
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
            return Next(KeyState.DELETED, times.deleted_at(key))


_IN_SUCCESSION = (KeyState.PENDING, KeyState.ACTIVE)


def _in_state(stored: Sequence[StoredKey], state: KeyState) -> list[StoredKey]:
    """Return the keys in this state, those that entered it first at the head."""
    found = [key for key in stored if key.state is state]
    return sorted(found, key=lambda key: (key.changed_at, key.config_id))


def _is_over(key: StoredKey, now: int, duration: int) -> bool:
    return not 0 <= now - key.changed_at < duration


def _move(key: StoredKey, to: KeyState) -> Move:
    return Move(key.config_id, key.suite, key.state, to)
