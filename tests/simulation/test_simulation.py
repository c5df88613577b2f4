"""Whatever befalls a deployment, what it has accepted is counted once or said to be left out.

Seeds run in processes of their own: a simulation replaces time, chance and threads.
``make soak SEEDS=20000 SEED=1000`` runs more of them, from that one on.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
KEPT = sorted((Path(__file__).parent / "kept").glob("*.json"))
FIRST, SEEDS, BATCH = int(os.environ.get("SEED", "0")), int(os.environ.get("SEEDS", "300")), 20
REPLAYED = 6
"""How many seeds are run twice."""
_DIGEST = re.compile(r"^seed \d+: ok, ([0-9a-f]{16})", re.MULTILINE)


def simulate(*arguments: str, hash_seed: str = "0") -> str:
    """Run ``python -m tests.simulation`` and return what it prints."""
    done = subprocess.run(
        [sys.executable, "-m", "tests.simulation", *arguments],
        cwd=ROOT,
        env={**os.environ, "PYTHONHASHSEED": hash_seed},
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        check=False,
    )
    assert done.returncode == 0, done.stdout
    return done.stdout


@pytest.mark.parametrize("first", range(FIRST, FIRST + SEEDS, BATCH))
def test_i1_every_accepted_report_is_in_one_result_or_counted_as_left_out(first: int) -> None:
    """Twenty plans, each with other tasks, faults and operators' deeds."""
    told = simulate("--seeds", f"{first}:{min(first + BATCH, FIRST + SEEDS)}")
    assert _DIGEST.search(told)


def test_a_seed_has_the_same_trace_again_however_python_hashes() -> None:
    """So that what a seed finds can be looked at."""
    traces = [_DIGEST.findall(simulate("--seeds", f"0:{REPLAYED}", hash_seed=h)) for h in "12"]
    assert traces[0] == traces[1]
    assert len(set(traces[0])) == REPLAYED


@pytest.mark.parametrize("plan", KEPT, ids=[plan.stem for plan in KEPT])
def test_what_a_plan_has_found_stays_fixed(plan: Path) -> None:
    """Each plan in ``kept`` failed once; its name says what it found."""
    simulate("--plan", str(plan))
