"""POST /reload: read the configuration file again, and use all of it or nothing."""

from __future__ import annotations

import msgspec

from dapd.admin.operation import Nothing, Operation
from dapd.process import reload
from dapd.runtime.context import Context


class Reloaded(msgspec.Struct, frozen=True):
    """The changed keys, as ``table.key``: those in force now, and those that need a restart."""

    applied: tuple[str, ...]
    restart: tuple[str, ...]


async def run(context: Context, _: Nothing) -> Reloaded:
    """Read the configuration file again, and use all of it or nothing.

    Raises ``UsageError`` if it is refused.
    """
    done = await reload.reload(context)
    return Reloaded(done.applied, done.restart)


RELOAD = Operation("reload", "POST", "/api/v1/reload", Nothing, Reloaded, run)
