"""The admin interface, which shows and changes a running daemon (rule E5).

It is apart from the public listener: on a Unix socket that only the daemon's user and group can
open, and on a TCP listener of its own (``dapd.admin.access``). ``OPERATIONS`` lists all operations,
one function each; ``dapd.admin.app`` routes, decodes, checks and audits them, and
``dapd.cli.daemon`` calls them.
"""

from __future__ import annotations

from typing import Any

from dapd.admin import clock, jobs, log, peers, reload, restore, status
from dapd.admin.operation import Operation

OPERATIONS: tuple[Operation[Any, Any], ...] = (
    clock.SHOW,
    clock.ACCEPT,
    restore.ACCEPT,
    reload.RELOAD,
    status.SHOW,
    jobs.LIST,
    jobs.SHOW,
    jobs.RETRY,
    jobs.ABANDON,
    peers.LIST,
    peers.SHOW,
    peers.PAUSE,
    peers.RESUME,
    peers.PROBE,
    log.SHOW,
    log.SET,
)
