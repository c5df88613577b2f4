"""The command line of ``dapd jobs``. ``tests/processes/test_admin_commands.py`` runs it beside a
daemon.
"""

from __future__ import annotations

import pytest

from tests.cli.typed import Run

GROUP = "jobs"


@pytest.mark.parametrize("job", ["a12", "-8xZ2", "--x"])
@pytest.mark.parametrize("command", [("show",), ("retry",), ("abandon", "--confirm", "a12")])
def test_a_job_is_named_by_any_id(run: Run, command: tuple[str, ...], job: str) -> None:
    """An id that begins with a dash, as one in 64 does, is no option."""
    status, said = run(*command, job)
    assert status == 2
    assert "no daemon runs with this configuration" in said
