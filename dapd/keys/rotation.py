"""Rotate HPKE keys: create, publish, expire and delete them in time (rule F1).

Left out: when to do which (``dapd.protocol.keys``), and the transaction
(``dapd.commits.hpke_keys``).
"""

from __future__ import annotations

from collections.abc import Sequence

import structlog
import trio

from dapd.commits import hpke_keys
from dapd.config import Config
from dapd.datastore import Tx, keys
from dapd.protocol.keys import KeyState, Move, free_ids
from dapd.runtime.context import Context

_log = structlog.get_logger()
_EVERY = 60.0
_ALARM_EVERY = 86_400.0


async def run(context: Context) -> None:
    """Make the moves that are due once a minute, until the daemon drains."""
    while not context.draining.is_set():
        try:
            await rotate(context)
        except Exception:  # noqa: BLE001 - the loop's edge: logged, and tried again
            _log.exception(
                "hpke_rotation_failed",
                remedy="dapd tries again; if this repeats, run `dapd datastore check`",
            )
        with trio.move_on_after(_EVERY):
            await context.draining.wait()


async def rotate(context: Context) -> list[Move]:
    """Move the keys that are due to their next states, use the result at once, and return the
    moves.

    While the safe clock is held, make none: by a wrong time keys would be deleted too early.
    """
    state = context.safe_clock.look()
    if state.held:
        return []
    due, ids_left = await context.read(_look, state.safe, context.config)
    context.metrics.succeeded("key_rotation")
    if not ids_left and context.seldom.due("hpke_ids_used_up", _ALARM_EVERY):
        _log.error(
            "hpke_ids_used_up",
            effect="dapd can't create an HPKE key, so it replaces none",
            remedy="raise [keys] active, or lower the tasks' report_expiry_age",
        )
    if not due:
        return []
    moves = await context.run(hpke_keys.rotate, context.sealer, state.safe, context.config)
    await context.keyrings.reload()
    log_moves(moves)
    return moves


def log_moves(moves: Sequence[Move]) -> None:
    """Log a line for each move."""
    for move in moves:
        if move.was is KeyState.DELETED:
            _log.info("hpke_key_made", config_id=move.config_id, state=move.to.value)
        else:
            was, state = move.was.value, move.to.value
            _log.info("hpke_key_moved", config_id=move.config_id, was=was, state=state)


def _look(tx: Tx, now: int, config: Config) -> tuple[bool, bool]:
    """Return whether ``rotate`` is due, and whether there is an id for a new key."""
    stored = keys.all_keys(tx)
    due = hpke_keys.is_rotation_due(stored, now, hpke_keys.key_times(tx, config))
    return due, bool(free_ids(stored))
