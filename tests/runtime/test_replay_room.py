"""The limit of the replay index (rule E4)."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import msgspec
import pytest
import structlog.testing

from dapd.config import Reports
from dapd.errors import Abort
from dapd.protocol.task import TaskSettings
from dapd.runtime.replay_room import require_replay_room
from tests.contexts import make_config, open_context
from tests.task_pair import task_pair


async def test_e4_a_task_that_never_forgets_is_refused_at_the_cap_with_an_alarm(
    tmp_path: Path,
) -> None:
    """There is one alarm a minute, however many requests are refused; tasks with an expiry age go
    on.
    """
    pair = task_pair()
    settings = msgspec.structs.replace(make_config(tmp_path), reports=Reports(max_replay_ids=2))
    for_ever = replace(pair.helper, settings=TaskSettings())
    for_weeks = replace(pair.helper, settings=TaskSettings(report_expiry_age=2_419_200))
    async with open_context(settings, (pair.helper, pair)) as context:
        require_replay_room(context, for_ever)
        context.datastore.replay.load(1, bytes(range(32)))
        with structlog.testing.capture_logs() as logs:
            for _ in range(2):
                with pytest.raises(Abort) as refused:
                    require_replay_room(context, for_ever)
                assert refused.value.status == 503
                assert "Retry-After" in refused.value.headers
            require_replay_room(context, for_weeks)
    assert [(line["event"], line["ids"]) for line in logs] == [("replay_index_full", 2)]
