"""The log's operations: show its level, and change it until the next start."""

from __future__ import annotations

from typing import Literal

import msgspec

from dapd.admin.operation import Nothing, Operation
from dapd.runtime.context import Context
from dapd.telemetry import logs

Level = Literal["debug", "info", "warning", "error"]


class LogLevel(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The lowest level to write."""

    level: Level


class LogView(msgspec.Struct, frozen=True):
    """``level`` is the lowest level that is written now, ``configured`` the configuration's."""

    level: str
    configured: str


async def show(context: Context, _: Nothing) -> LogView:
    """Show which lines are written now."""
    return LogView(logs.level(), context.config.log.level)


async def set_level(context: Context, request: LogLevel) -> LogView:
    """Write lines of this level and above, until the daemon stops or ``[log]`` changes."""
    logs.set_level(request.level)
    return LogView(logs.level(), context.config.log.level)


SHOW = Operation("log_show", "GET", "/api/v1/log", Nothing, LogView, show)
SET = Operation("log_level", "POST", "/api/v1/log/level", LogLevel, LogView, set_level)
