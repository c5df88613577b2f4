"""The admin socket: how an operator's commands change a running daemon (rule E5).

A Unix socket that only the daemon's user and group can open, apart from the listener that the world
sees. ``OPERATIONS`` is all that it serves, one function each: what is declared there is routed,
decoded, checked and audited by ``dapd.server.admin.app``, and called by ``dapd.cli.daemon``.
Left out: tokens and TLS, since the file's mode says who may connect.
"""

from __future__ import annotations

from typing import Any

from dapd.server.admin import clock, jobs, log, peers, reload, restore, status
from dapd.server.admin.operation import Operation

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
