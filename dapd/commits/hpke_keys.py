"""The transactions of HPKE keys: rotate them by their times, or as an operator commands (F1).

Each transaction reads the table first, and moves a key only from the state that it has just read.
"""

from __future__ import annotations

from collections.abc import Sequence

from dapd.config import Config
from dapd.crypto import HpkeKeypair, Sealer
from dapd.datastore import keys, tasks
from dapd.datastore.sqlite import Tx
from dapd.errors import DatastoreError, UsageError
from dapd.messages.common import b64url_encode
from dapd.protocol.keys import (
    KeyState,
    KeyTimes,
    Move,
    StoredKey,
    Suite,
    first_active,
    free_ids,
    plan,
    promotion,
    replaced,
)
from dapd.protocol.task import Instant, TaskState

_ADD_FIRST = "make another one first with `dapd key add --active`"


def key_times(tx: Tx, config: Config) -> KeyTimes:
    """Return the configured times, and how long a report sealed to a key may live (F1).

    The report's time may be ahead by the leeway, and it expires by its task's age after the end of
    its time precision.
    """
    lifetimes = report_lifetimes(tx).values()
    never = any(each is None for each in lifetimes)
    longest = max((each for each in lifetimes if each is not None), default=0)
    return KeyTimes(
        pending=config.keys.pending * 1000,
        active=config.keys.active * 1000,
        max_age=_max_age(config),
        report_life=None if never else int((longest + config.reports.early_leeway) * 1000),
    )


def report_lifetimes(tx: Tx) -> dict[str, int | None]:
    """Return for each task that isn't deleted the seconds until a report expires at the latest.

    ``None`` means never, or unknown, because the task is of another version of DAP.
    """
    found: dict[str, int | None] = {}
    for sealed in tasks.all_tasks(tx):
        if sealed.state in (TaskState.DELETED, TaskState.PURGED):
            continue
        try:
            task = sealed.public()
        except ValueError:
            found[b64url_encode(sealed.task_id)] = None
            continue
        age = task.settings.report_expiry_age
        found[task.id_text] = None if age is None else age + task.configuration.time_precision
    return found


def ensure_active_key(tx: Tx, sealer: Sealer, now: int, config: Config) -> list[Move]:
    """Make a key active if none is, as at the first start. Return the moves made."""
    return _make(tx, sealer, first_active(keys.all_keys(tx)), now, config)


def note_max_age(tx: Tx, config: Config) -> None:
    """Note for the active keys how long Clients may cache them by this configuration (F1).

    The daemon does so before it publishes a key with this lifetime; once noted, a lifetime keeps
    the key even if the configuration has a shorter one later.
    """
    keys.note_cached(tx, _max_age(config))


def is_rotation_due(stored: Sequence[StoredKey], now: int, times: KeyTimes) -> bool:
    """Return whether ``rotate`` has anything to do."""
    unnoted = any(key.state is KeyState.ACTIVE and key.cached_for < times.max_age for key in stored)
    return unnoted or bool(plan(stored, now, times))


def rotate(tx: Tx, sealer: Sealer, now: int, config: Config) -> list[Move]:
    """Make all moves that are due and return them; ``now`` is the safe time in milliseconds."""
    return _make(tx, sealer, plan(keys.all_keys(tx), now, key_times(tx, config)), now, config)


def add(tx: Tx, sealer: Sealer, suite: Suite, now: int, config: Config, *, active: bool) -> Move:
    """Add a key pair: pending, or at once active in place of its suite's active ones.

    Raises ``UsageError`` if one is pending already, or no id is left.
    """
    stored = keys.all_keys(tx)
    waiting = [key for key in stored if key.suite == suite and key.state is KeyState.PENDING]
    if waiting and not active:
        number = waiting[0].config_id
        raise UsageError(f"key {number} of this suite is pending; see `dapd key promote {number}`")
    ids = free_ids(stored)
    if not ids:
        raise UsageError("all 256 ids are in use; wait until a key is deleted (`dapd key list`)")
    to = KeyState.ACTIVE if active else KeyState.PENDING
    new = Move(ids[0], suite, KeyState.DELETED, to)
    _make(tx, sealer, [new, *(replaced(suite, stored) if active else [])], now, config)
    return new


def promote(tx: Tx, sealer: Sealer, config_id: int, now: int, config: Config) -> list[Move]:
    """Publish a pending key now, in place of its suite's active ones. Raises ``UsageError``."""
    stored = keys.all_keys(tx)
    key = _find(stored, config_id)
    if key.state is not KeyState.PENDING:
        raise UsageError(f"key {config_id} is {key.state} already; only a pending key is promoted")
    return _make(tx, sealer, promotion(key, stored), now, config)


def expire(tx: Tx, sealer: Sealer, config_id: int, now: int, config: Config) -> None:
    """Stop publishing an active key; it still opens reports. Raises ``UsageError``."""
    stored = keys.all_keys(tx)
    key = _find(stored, config_id)
    if key.state is not KeyState.ACTIVE:
        raise UsageError(f"key {config_id} is {key.state}; only an active key can expire")
    _refuse_last(key, stored)
    _make(tx, sealer, [Move(config_id, key.suite, key.state, KeyState.EXPIRED)], now, config)


def remove(tx: Tx, config_id: int, at: Instant, times: KeyTimes, *, compromised: bool) -> None:
    """Delete a private key that no report needs, or that is compromised. Raises ``UsageError``."""
    stored = keys.all_keys(tx)
    key = _find(stored, config_id)
    if compromised:
        _refuse_last(key, stored)
    else:
        _refuse_needed(key, at.safe, times)
    if not keys.move(tx, config_id, key.state, KeyState.DELETED, at.later):
        raise _overtaken(config_id)


def _max_age(config: Config) -> int:
    return config.server.hpke_config_max_age * 1000


def _make(tx: Tx, sealer: Sealer, moves: Sequence[Move], now: int, config: Config) -> list[Move]:
    note_max_age(tx, config)  # for the keys that expire now
    for move in moves:
        if move.was is KeyState.DELETED:
            keypair = HpkeKeypair.generate(move.config_id, *move.suite)
            done = keys.insert_keypair(tx, keypair, sealer, move.to, now)
        else:
            done = keys.move(tx, move.config_id, move.was, move.to, now)
        if not done:
            raise _overtaken(move.config_id)
    note_max_age(tx, config)  # for those that become active
    return list(moves)


def _overtaken(config_id: int) -> DatastoreError:
    return DatastoreError(f"another process changed key {config_id} just now; see `dapd key list`")


def _find(stored: Sequence[StoredKey], config_id: int) -> StoredKey:
    for key in stored:
        if key.config_id == config_id and key.state is not KeyState.DELETED:
            return key
    raise UsageError(f"there is no key {config_id}; `dapd key list` shows them")


def _refuse_last(key: StoredKey, stored: Sequence[StoredKey]) -> None:
    active = [each for each in stored if each.state is KeyState.ACTIVE]
    if active == [key]:
        raise UsageError(f"key {key.config_id} is the last active one; {_ADD_FIRST}")


def _refuse_needed(key: StoredKey, safe_now: int, times: KeyTimes) -> None:
    known = f"if others know its private key: `dapd key remove {key.config_id} --compromised`"
    match key.state:
        case KeyState.ACTIVE:
            raise UsageError(
                f"key {key.config_id} is active; `dapd key expire {key.config_id}` first, "
                f"or {known}"
            )
        case KeyState.EXPIRED:
            deleted_at = times.deleted_at(key)
            if deleted_at is None or safe_now < deleted_at:
                raise UsageError(
                    f"key {key.config_id} may still open reports, see `dapd key list`; {known}"
                )
        case KeyState.PENDING | KeyState.DELETED:
            pass
