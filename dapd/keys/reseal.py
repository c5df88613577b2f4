"""Seal everything again after the first configured sealing key has changed (rule F2).

This runs in the background, in bounded steps: read a page and seal it outside the writer's
transaction, then replace the values in a short one. After a restart it goes on behind the last step
that was stored. Left out: values whose key is lost, which ``dapd datastore forget-key`` drops.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import structlog
import trio

from dapd.commits.sealing_keys import ResealStanding, finish_reseal, replace_values, reseal_standing
from dapd.crypto import Sealer
from dapd.datastore import sealed
from dapd.datastore.sealed import COLUMNS, PAGE_CELLS, Cell, Column
from dapd.runtime.context import Context

_log = structlog.get_logger()
_SHORTEST_PAUSE = 0.005
_PAUSE_FACTOR = 4
"""A pause is so many times as long as the transaction before it: others need the writer too."""
_RETRY_AFTER = 60.0
_REPORT_EVERY = 60.0
_BEFORE_ALL_ROWS = -1


async def run(context: Context) -> None:
    """Reseal until everything is sealed with the first key, or the daemon drains.

    Usually there is nothing to do, and this returns at once.
    """
    while not context.draining.is_set():
        try:
            await reseal(context)
            return
        except Exception:  # noqa: BLE001 - the loop's edge: logged, and tried again
            _log.exception(
                "reseal_failed",
                remedy="dapd tries again; if this repeats, run `dapd datastore check`",
            )
        with trio.move_on_after(_RETRY_AFTER):
            await context.draining.wait()


async def reseal(context: Context) -> None:
    """Pass over all sealed columns until a pass finds nothing to do; then drop the old keys."""
    key_id = context.sealer.key_ids[0]
    standing = await context.read(reseal_standing, key_id)
    if not standing.others:
        return
    old = [other.hex() for other in standing.others]
    _log.info("reseal_started", key=key_id.hex(), old=old)
    progress = standing.progress
    while True:
        a_pass = Pass(context, key_id, progress)
        while await a_pass.step():
            await _pause(context, a_pass.took)
            if context.draining.is_set():
                return
        if a_pass.failures:
            _log.error(
                "reseal_incomplete",
                unopened=a_pass.failures,
                effect="the old sealing key is still needed",
                remedy="keep its file; these values are damaged: restore a backup that "
                "`dapd backup verify` accepts",
            )
            return
        if not (a_pass.found or progress) and await _finish(context, key_id, standing):
            return
        progress = {}


class Pass:
    """One pass over every sealed value, in steps. ``progress`` says which rows are done already.

    ``found`` counts the values that had to be sealed again, ``failures`` lists those that could not
    be unsealed, ``took`` is how long (s) the last step occupied the writer.
    """

    def __init__(
        self,
        context: Context,
        key_id: bytes,
        progress: dict[str, int],
        *,
        page_cells: int = PAGE_CELLS,
    ) -> None:
        self._context = context
        self._page_cells = page_cells
        self._key_id = key_id
        self._left = list(COLUMNS)
        self._after = dict(progress)
        self.found = 0
        self.failures: list[str] = []
        self.took = 0.0

    @property
    def column(self) -> Column | None:
        """The column that the next step looks at; ``None`` after the last one."""
        return self._left[0] if self._left else None

    async def step(self) -> bool:
        """Reseal one page of one column. Return whether there may be more."""
        context, column, self.took = self._context, self.column, 0.0
        if column is None:
            return False
        after = self._after.get(column.name, _BEFORE_ALL_ROWS)
        cells = await context.read(sealed.page, column, after, self._page_cells)
        if not cells:
            self._left.pop(0)
            return bool(self._left)
        resealed = await context.compute(_resealed, context.sealer, column, cells, self._key_id)
        after = self._after[column.name] = cells[-1].pk
        self.failures += resealed.failures
        if resealed.values:
            self.found += len(resealed.values)
            began = trio.current_time()
            await context.run(replace_values, column, resealed.values, self._key_id, after)
            self.took = trio.current_time() - began
        if context.seldom.due("reseal_progress", _REPORT_EVERY):
            _log.info("reseal_progress", column=column.name, row=after, resealed=self.found)
        return True


@dataclass(frozen=True, slots=True)
class _Resealed:
    values: list[tuple[Cell, bytes]] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)


def _resealed(sealer: Sealer, column: Column, cells: Sequence[Cell], key_id: bytes) -> _Resealed:
    """Return the new values of a page, and the values that can't be unsealed."""
    resealed = _Resealed()
    for cell in cells:
        try:
            if column.is_stale(cell, key_id):
                resealed.values.append((cell, column.resealed(sealer, cell)))
        except ValueError as error:
            resealed.failures.append(f"{column.name}, row {cell.pk}: {error}")
    return resealed


async def _finish(context: Context, key_id: bytes, standing: ResealStanding) -> bool:
    if not await context.run(finish_reseal, key_id, standing.others):
        return False
    _log.info(
        "reseal_finished",
        key=key_id.hex(),
        old=[other.hex() for other in standing.others],
        remedy="remove the old keys' files from [datastore] sealing_keys, but keep the files for "
        "as long as you keep older backups",
    )
    return True


async def _pause(context: Context, took: float) -> None:
    with trio.move_on_after(max(_SHORTEST_PAUSE, _PAUSE_FACTOR * took)):
        await context.draining.wait()
