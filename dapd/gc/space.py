"""Give the space of deleted rows back to the file system, in short steps.

Some free pages stay in the file, for new rows. Left out: deleting rows (``dapd.gc.sweep``).
"""

from __future__ import annotations

import trio

from dapd.datastore.sqlite import Pages, Tx
from dapd.runtime.context import Context

_SPARE_PAGES = 1000
_SPARE_SHARE = 10
"""The file may keep a tenth of its pages free, and at least ``_SPARE_PAGES``."""
_STEP_SECONDS = 0.01
_PAUSE = 0.04


async def run_round(context: Context) -> None:
    """Shrink the file until it has no more free pages than it may keep, or the daemon drains."""
    while not context.draining.is_set():
        pages = await context.read(Tx.pages)
        if not (most := surplus(pages)):
            return
        await context.run(Tx.give_back, most, _STEP_SECONDS)
        await trio.sleep(_PAUSE)


def surplus(pages: Pages) -> int:
    """Return how many free pages the file should give back."""
    return max(0, pages.free - max(_SPARE_PAGES, pages.total // _SPARE_SHARE))
