"""``dapd task``: make tasks, and look after those of a daemon's datastore, also while it runs."""

from __future__ import annotations

import click

from dapd.cli.task import counters, files, look, state, token


@click.group()
def task() -> None:
    """Make tasks, and look after those of a daemon.

    A task is agreed on outside the protocol: `task new` writes a file for each of the four
    parties, `task add` loads a Leader's or a Helper's. docs/tasks.md explains the files.

    TASK_ID may be a task's first characters. A running daemon follows every change within a
    second.
    """


for _command in (*files.COMMANDS, *look.COMMANDS, *counters.COMMANDS, *state.COMMANDS, token.token):
    task.add_command(_command)
