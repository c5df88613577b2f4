"""The ``dapd`` command. Each subcommand is a module of this package, imported when it is called.

Nothing heavy is imported at the top: commands import what they need inside their functions, so that
``dapd --help`` answers at once.
"""

from __future__ import annotations

import gc
import importlib
import sys
from pathlib import Path

import click
from click.exceptions import NoSuchCommand

from dapd import __version__
from dapd.errors import DatastoreError, PeerError, UsageError

_COMMANDS = (
    "admin",
    "backup",
    "clock",
    "collect",
    "datastore",
    "demo",
    "doctor",
    "init",
    "jobs",
    "key",
    "log",
    "peer",
    "reload",
    "restore",
    "status",
    "task",
    "upload",
)
"""``NAME`` is the click command ``NAME`` of the module ``dapd.cli.NAME``."""
_USUALLY = gc.get_threshold()
_COLLECT_SELDOM = 50_000
"""How many new objects start a round of Python's garbage collector while a process starts.

What the process imports stays, and each usual round would go through all of it again.
"""


class _Commands(click.Group):
    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(_COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in _COMMANDS:
            return None
        command = getattr(importlib.import_module(f"dapd.cli.{cmd_name}"), cmd_name)
        assert isinstance(command, click.Command)
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        try:
            return super().resolve_command(ctx, args)
        except NoSuchCommand as error:  # click only suggests commands that are already loaded
            raise NoSuchCommand(error.command_name, possibilities=_COMMANDS, ctx=ctx) from None


@click.group(
    cls=_Commands,
    invoke_without_command=True,
    context_settings={"help_option_names": ["-h", "--help"]},
)
@click.option(
    "--config",
    type=click.Path(readable=False, path_type=Path),  # loading reports unreadable files better
    metavar="FILE",
    help="The daemon's configuration; by default $DAPD_CONFIG, or where `dapd init` puts it. "
    "Without a command, run the daemon.",
)
@click.version_option(__version__, prog_name="dapd", message="%(prog)s %(version)s")
@click.pass_context
def root(ctx: click.Context, config: Path | None) -> None:
    """Run and operate a Distributed Aggregation Protocol (DAP) Aggregator.

    The client (`dapd upload`) and the collector (`dapd collect`) are included.

    \b
    Set up a new Helper:
      sudo dapd init --role helper --url https://helper.example/dap
      sudo systemctl enable --now dapd

    \b
    Run the daemon without systemd:
      dapd --config FILE

    \b
    See it work on this machine, with a Leader, a Helper, clients and a collector:
      dapd demo
    """
    ctx.obj = config
    if ctx.invoked_subcommand is not None:
        return
    if config is None:
        click.echo(ctx.get_help())
        return
    _import_structlog_alone()
    from dapd.app import run

    _collect_as_usual()
    ctx.exit(run(config))


def required_config(config: Path | None) -> Path:
    """Return the configuration file of a daemon's command: the one given with ``--config`` (from
    ``click.pass_obj``), or the one in the usual place.
    """
    from dapd.cli.paths import find_config

    return find_config(config)


def main(arguments: list[str] | None = None) -> None:
    """Run the console script. Exit with 2 if the operator's input is wrong, 1 on other failures.

    Without ``arguments`` the process is this command's own, and ends with it.
    """
    if arguments is not None:
        sys.exit(_run(arguments))
    gc.set_threshold(_COLLECT_SELDOM)
    try:
        sys.exit(_run(arguments))
    finally:
        gc.freeze()  # the system takes the memory back anyway


def _collect_as_usual() -> None:
    """Resume Python's garbage collection in a loaded daemon, except of what it has imported."""
    gc.freeze()
    gc.set_threshold(*_USUALLY)


def _import_structlog_alone() -> None:
    """Import structlog without rich, which it would load for tracebacks with local variables.

    dapd never writes those (I9), and loading rich is a tenth of the daemon's start.
    """
    if "rich" in sys.modules or "structlog" in sys.modules:
        return
    sys.modules["rich"] = None  # type: ignore[assignment] # an import of rich fails now, which structlog expects
    import structlog  # noqa: F401

    del sys.modules["rich"]


def _run(arguments: list[str] | None) -> int:
    try:
        code = root.main(arguments, prog_name="dapd", standalone_mode=False)
    except click.ClickException as error:
        error.show()
        return error.exit_code
    except click.Abort:
        return 130
    except (UsageError, DatastoreError, PeerError) as error:
        from dapd.telemetry.journal import complain

        complain(error)
        return 2 if isinstance(error, UsageError) else 1
    return code if isinstance(code, int) else 0
