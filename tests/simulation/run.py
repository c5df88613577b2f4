"""Run plans, report those that fail, and shrink one."""

from __future__ import annotations

import sys
import time
import traceback

from msgspec import structs

from dapd.errors import innermost
from tests.simulation import determinism
from tests.simulation.plan import Noise, Plan
from tests.simulation.trace import Trace
from tests.simulation.world import simulate

_FRAMES = 6
"""How many frames of a traceback are printed."""
_timer = time.thread_time  # which no simulation replaces


def one(plan: Plan, *, keep: bool = False) -> tuple[Trace, BaseException | None]:
    """Run a plan. Return its trace, of which ``keep`` keeps the lines, and what it failed with."""
    determinism.slow_down_fallbacks()
    trace = Trace(keep=keep)
    try:
        simulate(plan, trace)
    except Exception as error:  # noqa: BLE001 - reported with the seed
        return trace, innermost(error)
    return trace, None


def report(plan: Plan, *, trace: bool) -> bool:
    """Run a plan and print a line about it, and why it failed. Return whether it did not."""
    began = _timer()
    told, error = one(plan, keep=trace)
    for line in told.lines:
        _say(line)
    seconds, verdict = _timer() - began, "failed" if error else "ok"
    _say(f"seed {plan.seed}: {verdict}, {told.digest[:16]}, {seconds:.2f} s")
    if error is not None:
        _say("".join(traceback.format_exception(error, limit=-_FRAMES)))
        command = f"python -m tests.simulation --seeds {plan.seed}"
        _say(f"to see it again: {command} --trace")
        _say(f"to shrink it:    {command} --shrink plan.json")
    return error is None


def shrink(plan: Plan) -> Plan:
    """Leave out of a failing plan whatever it fails without: noise, then ever fewer events."""
    for quiet in _quieter(plan):
        if _still_fails(quiet):
            plan = quiet
    size = max(1, len(plan.events) // 2)
    while size:
        at = 0
        while at < len(plan.events):
            fewer = plan.without(set(range(at, at + size)))
            if _still_fails(fewer):
                plan = fewer
            else:
                at += size
        size //= 2
    return plan


def _quieter(plan: Plan) -> list[Plan]:
    faults = plan.noise.faults
    quiet = [Noise({kind: faults[kind]}) for kind in faults]
    return [structs.replace(plan, noise=noise) for noise in [*quiet, Noise()]]


def _still_fails(plan: Plan) -> bool:
    _, error = one(plan)
    _say(f"{len(plan.events)} events: {'fails' if error else 'passes'}")
    return error is not None


def _say(line: str) -> None:
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()
