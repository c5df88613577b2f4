"""HPKE keys follow each other without anybody's help (rule F1).

Left out: when (``dapd.protocol.keys``), and the transaction (``dapd.commits.hpke_keys``).
"""

from __future__ import annotations

from collections.abc import Sequence

import structlog
import trio

from dapd.commits import hpke_keys
from dapd.config import Config
from dapd.datastore import Tx, keys
from dapd.protocol.keys import KeyState, Move, free_ids, plan
from dapd.runtime.context import Context

_log = structlog.get_logger()
_EVERY = 60.0
_ALARM_EVERY = 86_400.0


async def run(context: Context) -> None:
    """Look once a minute until draining."""
    while not context.draining.is_set():
        try:
            await rotate(context)
        except Exception:  # noqa: BLE001 - the loop's edge: logged, and tried again
            _log.exception("hpke_rotation_failed", remedy="retried; check the database")
        with trio.move_on_after(_EVERY):
            await context.draining.wait()


async def rotate(context: Context) -> list[Move]:
    """Make the moves that are due, and use their outcome at once.

    While the safe clock is held none is: a key that expires by a time which turns out to be long
    past would be deleted too early.
    """
    state = context.safe_clock.look()
    if state.held:
        return []
    due, ids_left = await context.read(_look, state.safe, context.config)
    context.metrics.succeeded("key_rotation")
    if not ids_left and context.seldom.due("hpke_ids_used_up", _ALARM_EVERY):
        _log.error(
            "hpke_ids_used_up",
            effect="no HPKE key is replaced",
            remedy="raise [keys] active, or lower the tasks' report_expiry_age",
        )
    if not due:
        return []
    moves = await context.run(hpke_keys.rotate, context.sealer, state.safe, context.config)
    await context.keyrings.reload()
    log_moves(moves)
    return moves


def log_moves(moves: Sequence[Move]) -> None:
    """A line for each."""
    for move in moves:
        if move.was is KeyState.DELETED:
            _log.info("hpke_key_made", config_id=move.config_id, state=move.to.value)
        else:
            was, state = move.was.value, move.to.value
            _log.info("hpke_key_moved", config_id=move.config_id, was=was, state=state)


def _look(tx: Tx, now: int, config: Config) -> tuple[bool, bool]:
    """Whether a move is due, and whether a new key would find an id."""
    stored = keys.all_keys(tx)
    return bool(plan(stored, now, hpke_keys.key_times(tx, config))), bool(free_ids(stored))
