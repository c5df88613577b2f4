"""Gives the space of deleted rows back to the file system, in steps that hold up nobody.

Some free pages stay in the file: new rows use them before it grows. Left out: what makes them free
(``dapd.gc.sweep``).
"""

from __future__ import annotations

import trio

from dapd.datastore.sqlite import Pages, Tx
from dapd.runtime.context import Context

_SPARE_PAGES = 1000
_SPARE_SHARE = 10
"""The file keeps a tenth of its pages free, and at least so many."""
_STEP_SECONDS = 0.01
_PAUSE = 0.04


async def run_round(context: Context) -> None:
    """Until the file has no more free pages than it should keep, or draining."""
    while not context.draining.is_set():
        pages = await context.read(Tx.pages)
        if not (most := surplus(pages)):
            return
        await context.run(Tx.give_back, most, _STEP_SECONDS)
        await trio.sleep(_PAUSE)


def surplus(pages: Pages) -> int:
    """How many pages the file should give back."""
    return max(0, pages.free - max(_SPARE_PAGES, pages.total // _SPARE_SHARE))
