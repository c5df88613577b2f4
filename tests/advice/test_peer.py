"""What a peer's silence and refusals mean: each has its own advice."""

from __future__ import annotations

import pytest

from dapd.advice.peer import failing, likely_cause


@pytest.mark.parametrize(
    ("status", "type", "cause"),
    [
        (401, None, "token"),
        (403, "invalidMessage", "token"),
        (404, "unrecognizedTask", "doesn't know the task"),
        (404, "unrecognizedAggregationJob", "lost the job's state"),
        (400, "stepMismatch", "compare both sides"),
        (400, "unsupportedExtension", "compare both sides"),
        (400, "invalidAggregationParameter", "compare both sides"),
        (400, "invalidMessage", "may have accepted it before"),
        (404, None, "no DAP Helper"),
        (405, None, "no DAP Helper"),
        (413, None, "max_job_size"),
        (415, None, "another version of DAP"),
        (422, None, "see its logs"),
        (None, None, "see its logs"),
    ],
)
def test_each_refusal_says_what_to_look_at(
    status: int | None, type: str | None, cause: str
) -> None:
    """A token is checked before anything else, so 401 and 403 are about it whatever the type."""
    assert cause in likely_cause(status, type)


def test_a_peer_that_can_not_be_reached_says_when_dapd_tries_again() -> None:
    advice = failing("https://helper.example/", 1, 1000)
    assert str(advice) == (
        "https://helper.example/ can't be reached, after 1 failed request; dapd tries it again in "
        "1 second: `dapd peer probe https://helper.example/` says why"
    )
    assert failing("https://helper.example/", 3, 0).what.endswith("dapd tries it next")
