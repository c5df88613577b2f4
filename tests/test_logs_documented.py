"""docs/logs.md lists each event that the code can log, with its levels and fields, and no other."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
LOGS = ROOT / "docs/logs.md"
_ROW = re.compile(r"^\| `(\w+)` \| ([\w, ]+) \|(.*?)\| .+ \|$", re.MULTILINE)
LEVELS = {each: each for each in ("debug", "info", "warning", "error", "critical")}
LEVELS["exception"] = "error"
LOGGERS = {"_log", "_audit"}
LOUD = {"error", "critical"}
SPREAD = {"caller": {"uid", "token"}}
"""What is passed on as ``**caller``."""
UNIFORM = {"task": "task_id", "job": "job_id", "request": "request_id"}
AUDIT = {"admin_changed", "admin_change_failed"}


@dataclass
class Event:
    """All calls that log it, together."""

    levels: set[str] = field(default_factory=set)
    fields: set[str] = field(default_factory=set)


def sources() -> Iterator[tuple[Path, ast.Module]]:
    for path in sorted((ROOT / "dapd").rglob("*.py")):
        yield path.relative_to(ROOT), ast.parse(path.read_text())


def calls(module: ast.AST) -> Iterator[tuple[str, ast.Call]]:
    """(level, call) of each call of a logger, which is always called by one of two names."""
    for call in (node for node in ast.walk(module) if isinstance(node, ast.Call)):
        if isinstance(call.func, ast.Attribute) and ast.unparse(call.func.value) in LOGGERS:
            yield LEVELS[call.func.attr], call


def fields_of(call: ast.Call) -> set[str]:
    found: set[str] = set()
    for keyword in call.keywords:
        found |= {keyword.arg} if keyword.arg else SPREAD[ast.unparse(keyword.value)]
    if ast.unparse(call.func).endswith(".exception"):
        found.add("exc_info")
    return found - {"exc_info"} | {"error", "exception"} if "exc_info" in found else found


def logged() -> dict[str, Event]:
    events: dict[str, Event] = {}
    for path, module in sources():
        for level, call in calls(module):
            match call.args:
                case [ast.Constant(str(name))]:
                    event = events.setdefault(name, Event())
                    event.levels.add(level)
                    event.fields |= fields_of(call)
                case _:
                    pytest.fail(f"{path}:{call.lineno}: an event is one literal word")
    return events


def documented() -> dict[str, Event]:
    return {
        name: Event(set(levels.split(", ")), set(re.findall(r"`(\w+)`", fields)))
        for name, levels, fields in _ROW.findall(LOGS.read_text())
    }


def test_every_event_is_documented_and_no_other() -> None:
    """So that lines can be scraped: events, their levels and the fields that they may have."""
    assert documented() == logged()


def test_events_and_fields_are_called_alike_everywhere() -> None:
    """Words in snake case; the task, the job and the request by the names of their context."""
    for name, event in logged().items():
        assert all(re.fullmatch(r"[a-z]+(_[a-z]+)*", word) for word in (name, *event.fields))
        assert name in AUDIT or not event.fields & UNIFORM.keys(), name


def test_every_error_says_what_to_do() -> None:
    """Blame plus remedy."""
    for path, module in sources():
        for level, call in calls(module):
            assert level not in LOUD or "remedy" in fields_of(call), f"{path}:{call.lineno}"


def test_nothing_is_logged_by_another_name() -> None:
    """What these tests look for is all there is: loggers by these names, at the top of a module."""
    for path, module in sources():
        named = [
            each.value
            for each in module.body
            if isinstance(each, ast.Assign) and ast.unparse(each.targets[0]) in LOGGERS
        ]
        for node in ast.walk(module):
            match node:
                case ast.Call(func=ast.Attribute(attr="get_logger" | "wrap_logger")):
                    assert node in named or path == Path("dapd/telemetry/logs.py"), path
                case ast.Attribute(value=ast.Call(func=ast.Attribute(attr="getLogger")), attr=used):
                    assert used == "setLevel", f"{path}:{node.lineno}"
                case ast.Call(func=ast.Attribute(value=ast.Name("warnings"))):
                    pytest.fail(f"{path}:{node.lineno}: a warning of ours is an event")
                case _:
                    pass
