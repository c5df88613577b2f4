"""Run simulated deployments, each from one seed, and print those that break a promise."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from tests.simulation import determinism

determinism.fix_hash_seed()
determinism.install()  # before anything of dapd is imported

from tests.simulation import run  # noqa: E402
from tests.simulation.plan import draw_plan, read_plan, write_plan  # noqa: E402


def main() -> int:
    """Do what the command line says. Return the exit status: 1 if a run failed."""
    parser = argparse.ArgumentParser(prog="python -m tests.simulation", description=__doc__)
    parser.add_argument("--seeds", default="0:300", help="FROM:TO, or a single one [0:300]")
    parser.add_argument("--plan", type=Path, help="run this plan instead, a JSON file")
    parser.add_argument("--trace", action="store_true", help="print all that happens")
    parser.add_argument(
        "--shrink",
        type=Path,
        metavar="FILE",
        help="leave out of a failing plan what it fails without",
    )
    arguments = parser.parse_args()
    if arguments.plan is not None:
        plans = [read_plan(arguments.plan)]
    else:
        first, _, last = arguments.seeds.partition(":")
        plans = [draw_plan(seed) for seed in range(int(first), int(last or int(first) + 1))]
    failed = [plan for plan in plans if not run.report(plan, trace=arguments.trace)]
    if failed and arguments.shrink is not None:
        write_plan(run.shrink(failed[0]), arguments.shrink)
    return bool(failed)


sys.exit(main())
