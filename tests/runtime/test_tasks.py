"""The live tasks: what another process adds is there before it could be refused."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from dapd.commits.add_task import add_task
from dapd.datastore import open_for_command, tasks
from dapd.protocol.task import TaskSettings
from dapd.runtime.tasks import Tasks
from tests.build import open_store, task_pair


async def test_e5_a_task_that_a_command_has_just_added_is_not_refused(tmp_path: Path) -> None:
    """The first request for it may come at once, right after one that was refused."""
    opened, pair = open_store(tmp_path / "dapd.sqlite"), task_pair()
    live = Tasks(opened.datastore, pair.sealer)
    assert await live.find(pair.helper.task_id) is None
    command = open_for_command(tmp_path / "dapd.sqlite", holder="a command", now=0)
    command.datastore.run_sync(add_task, pair.helper, pair.sealer)
    command.close()
    found = await live.find(pair.helper.task_id)
    assert found is not None
    assert replace(found, task_pk=0) == pair.helper
    opened.close()


async def test_e5_a_change_by_a_command_is_seen_at_the_next_look(tmp_path: Path) -> None:
    """``dapd task set`` reaches a running daemon."""
    opened, pair = open_store(tmp_path / "dapd.sqlite"), task_pair()
    live = Tasks(opened.datastore, pair.sealer)
    opened.datastore.run_sync(add_task, pair.helper, pair.sealer)
    await live.refresh()
    task = await live.find(pair.helper.task_id)
    assert task is not None
    command = open_for_command(tmp_path / "dapd.sqlite", holder="a command", now=0)
    command.datastore.run_sync(tasks.set_settings, task.task_pk, TaskSettings("sync"))
    command.close()
    await live.refresh()
    assert live.by_pk(task.task_pk).settings.helper_mode == "sync"
    opened.close()
