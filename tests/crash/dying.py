"""A daemon that kills itself at one transaction.

    python tests/crash/dying.py before|after MODULE.FUNCTION --config FILE [COMMAND...]

So does a command in its place. The first transaction of that function which changes something is
the last thing that the process does: ``before`` its COMMIT, or ``after`` it, when nobody has been
told yet.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable
from typing import Any

from dapd.cli import main
from dapd.datastore.sqlite import Datastore, Tx


def arm(moment: str, function: str) -> None:
    """Let the function's transaction be the last."""
    run_sync = Datastore.run_sync

    def dying(store: Datastore, fn: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        name = f"{fn.__module__}.{fn.__name__}".removeprefix("dapd.")
        changes = store._writer.total_changes

        def last(tx: Tx, *args: Any, **kwargs: Any) -> Any:
            result = fn(tx, *args, **kwargs)
            die_if_changed()
            return result

        def die_if_changed() -> None:
            if store._writer.total_changes > changes:
                os.kill(os.getpid(), signal.SIGKILL)

        if name != function:
            return run_sync(store, fn, *args, **kwargs)
        if moment == "before":
            return run_sync(store, last, *args, **kwargs)
        result = run_sync(store, fn, *args, **kwargs)
        die_if_changed()
        return result

    Datastore.run_sync = dying  # type: ignore[assignment, method-assign]


if __name__ == "__main__":
    arm(*sys.argv[1:3])
    main(sys.argv[3:])
