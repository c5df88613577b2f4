"""``dapd task``: make tasks and manage those of a daemon, whether or not it runs."""

from __future__ import annotations

import click

from dapd.cli.task import counters, files, look, state, token


@click.group()
def task() -> None:
    """Make tasks and manage those of a daemon.

    The parties agree on a task outside the protocol: `task new` writes a file for each of the four
    parties, and each Aggregator loads its own with `task add`. docs/tasks.md explains the files.

    TASK_ID may be just the first characters of a task's id. A running daemon applies every change
    within a second.

    \b
    Example:
      dapd task new --vdaf count --batch-mode time-interval \\
        --time-precision 3600 --min-batch-size 100 \\
        --leader https://leader.example/ --helper https://helper.example/ --out my-task
      dapd task add my-task/leader.toml
      dapd task list
    """


for _command in (*files.COMMANDS, *look.COMMANDS, *counters.COMMANDS, *state.COMMANDS, token.token):
    task.add_command(_command)
