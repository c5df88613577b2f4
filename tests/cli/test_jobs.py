"""``dapd jobs`` as it is typed; beside a daemon: ``tests/processes/test_admin_commands.py``."""

from __future__ import annotations

import pytest

from tests.cli.typed import Run

GROUP = "jobs"


@pytest.mark.parametrize("job", ["a12", "-8xZ2", "--x"])
@pytest.mark.parametrize("command", [("show",), ("retry",), ("abandon", "--confirm", "a12")])
def test_a_job_is_named_by_any_id(run: Run, command: tuple[str, ...], job: str) -> None:
    """Also by one that begins with a dash, as one in 64 does: it is asked for, not parsed."""
    status, said = run(*command, job)
    assert status == 2
    assert "no daemon runs on this configuration" in said
