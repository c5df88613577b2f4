"""A daemon with a fault in each place where secrets are in hand: the first call there raises.

    python -m tests.hostile.faulty --config FILE

What it raises are ``UnicodeDecodeError`` of the bytes in hand, as a careless parser's would be; the
``repr`` of such an error shows them all.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable
from functools import wraps
from typing import Any

from dapd.cli import main

PLACES: dict[tuple[str, str], Callable[..., bytes]] = {
    ("dapd.server.reports", "require_replay_room"): lambda _, task: task.verify_key,
    ("dapd.driver.uploads", "open_uploads"): lambda inputs, *_: inputs[0][2],
    ("dapd.driver.aggregation", "leader_start"): lambda *arguments: arguments[-1][0][0],
    ("dapd.driver.aggregation", "leader_finish"): lambda *arguments: arguments[-1],
    ("dapd.driver.collection", "collection_response"): lambda task, *_: task.verify_key,
    ("dapd.driver.helper_job", "judge_init"): lambda _, body: body,
    ("dapd.driver.helper_job", "_verify"): lambda _, task, *_rest: task.verify_key,
}
"""(module, function): the bytes, out of the function's arguments."""


def fail_once(module: str, function: str, in_hand: Callable[..., bytes]) -> None:
    """Let the first call of the function, as the module calls it, fail."""
    place = importlib.import_module(module)
    real = getattr(place, function)
    calls = 0

    @wraps(real)
    def failing(*arguments: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == 1:
            raise UnicodeDecodeError("ascii", in_hand(*arguments), 0, 1, "no text")
        return real(*arguments)

    setattr(place, function, failing)


if __name__ == "__main__":
    for (module, function), in_hand in PLACES.items():
        fail_once(module, function, in_hand)
    main(sys.argv[1:])
