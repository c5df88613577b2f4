"""The daemon: the servers and loops that run in one nursery, and how they start and stop (I8).

``LOOPS`` lists the loops. On SIGTERM or SIGINT the daemon drains: it takes no new leases, answers
held requests "not ready" and closes its listeners. It finishes queued uploads and running work
within the grace period, cancels the rest between transactions, releases their leases, and closes
the datastore last. The service manager is notified of each stage (``dapd.process.notify``).
"""

from __future__ import annotations

import faulthandler
import os
import random
import resource
import signal
import ssl
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import structlog
import trio

from dapd import __version__
from dapd.admin import app as admin_app
from dapd.admin import monitoring
from dapd.advice.upkeep import COMPARE_RESTORED, RENEW_CERTIFICATE
from dapd.commits.hpke_keys import ensure_active_key
from dapd.commits.restore import quarantine
from dapd.commits.sealing_keys import check_sealing_keys
from dapd.config import Config
from dapd.config.keyfiles import read_sealing_keys
from dapd.config.loading import load
from dapd.crypto import Sealer, make_sealer, sealing_key_id
from dapd.datastore import Opened, Tx, leases, open_for_daemon, safe_clock
from dapd.driver import aggregation, collection, creator, helper_job, uploads
from dapd.driver.dispatcher import Dispatcher
from dapd.errors import DatastoreError, NotYet, UnfitDatastore, UsageError, innermost
from dapd.gc import loop as garbage
from dapd.http import DapHttp
from dapd.keys import reseal, rotation
from dapd.process import notify, reload
from dapd.process.notify import Notifier, status_line
from dapd.process.owner import become_owner, make_socket_directory
from dapd.protocol.task import Instant
from dapd.runtime.certificates import Certificates, read_certificates
from dapd.runtime.clock import Clock, SafeClock, SystemClock
from dapd.runtime.context import Context, Outside, make_context
from dapd.server import quart_app
from dapd.server.front import front
from dapd.server.listener import Server
from dapd.server.sockets import listening, unix_listener
from dapd.telemetry import logs
from dapd.telemetry.journal import complain
from dapd.upkeep import clock_watch, history, lag, refresh

_log = structlog.get_logger()
_LONGEST_OPERATION = 3600.0
"""Seconds that a command on the admin socket may wait for its answer."""
_CLOSING_SECONDS = 30.0
"""Seconds allowed after the grace period, for the last commit and the WAL checkpoint."""

EXIT_TEMPFAIL, EXIT_CONFIG = 75, 78
"""Exit statuses of a daemon that can't start, from sysexits.h. A restart may help after the first;
after the second the systemd unit doesn't restart the daemon, because the operator must act.
"""

STEPS = {
    ("aggregation", "leader"): aggregation.run,
    ("aggregation", "helper"): helper_job.run,
    ("collection", "leader"): collection.run,
}


async def dispatch(context: Context) -> None:
    """Step the jobs that are due."""
    await Dispatcher(context, STEPS, context.config.leader.computing_slots).run()


LOOPS: list[Callable[[Context], Awaitable[None]]] = [
    clock_watch.run,
    refresh.run,
    notify.run,
    lag.run,
    history.run,
    reload.run,
    rotation.run,
    reseal.run,
    garbage.run,
    creator.run,
    dispatch,
]
"""Each loop returns once ``context.draining`` is set and it has finished the work it had begun."""


@dataclass(frozen=True, slots=True)
class Daemon:
    """A running daemon and the addresses it listens on."""

    context: Context
    host: str
    port: int
    admin_port: int | None


async def run_daemon(
    config: Config,
    *,
    stop: trio.Event,
    clock: Clock | None = None,
    config_path: Path | None = None,
    task_status: trio.TaskStatus[Daemon] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Run a daemon until ``stop`` is set, then stop it in order.

    ``config_path`` is the file that ``config`` was read from; ``dapd reload`` needs it. Raises
    ``UsageError`` or ``DatastoreError`` if the daemon can't start; the message says what to do.
    """
    notifier = Notifier()
    with trio.CancelScope() as grace:
        async with (
            daemon_context(config, clock or SystemClock(), notifier) as context,
            notifier.feeding_watchdog(),
            listening(config.server.address, "server") as public,
            listening(config.admin.address, "admin") as admin,
        ):
            context.config_path = config_path
            with unix_listener(config.admin_socket) as control:
                servers = _servers(context, public, control, admin)
                async with trio.open_nursery() as nursery:
                    for loop in LOOPS:
                        nursery.start_soon(loop, context)
                    for server in servers:
                        nursery.start_soon(server.run)
                    daemon = _described(context, public, admin)
                    notifier.ready(await status_line(context))
                    task_status.started(daemon)
                    await stop.wait()
                    seconds = context.config.shutdown.grace
                    _log.info("stopping", grace_seconds=seconds)
                    grace.deadline = trio.current_time() + seconds
                    notifier.stopping("finishing running work", seconds + _CLOSING_SECONDS)
                    context.drain()
                    for server in servers:
                        await server.close_listeners()
    _log.info("stopped", cut_short=grace.cancelled_caught)


def _described(
    context: Context, public: list[trio.SocketListener], admin: list[trio.SocketListener]
) -> Daemon:
    """Log where the daemon listens and return its description."""
    host, _ = context.config.server.address
    daemon = Daemon(context, host, _port(public), _port(admin) if admin else None)
    _log.info("listening", host=host, port=daemon.port, version=__version__)
    if admin:
        _log.info("admin_listening", listen=context.config.admin.listen, port=daemon.admin_port)
    return daemon


def _port(listeners: list[trio.SocketListener]) -> int:
    port: int = listeners[0].socket.getsockname()[1]
    return port


def _servers(
    context: Context,
    public: list[trio.SocketListener],
    control: trio.SocketListener,
    admin: list[trio.SocketListener],
) -> list[Server]:
    """Return the public server, the admin socket's (rule E5) and the admin listener's, if any."""
    app = front(context, quart_app.build(context))  # type: ignore[arg-type]

    def read_timeout() -> float:
        return context.config.server.read_timeout

    def operation_timeout() -> float:
        return context.config.leader.request_timeout + read_timeout()  # the longest is a probe

    def public_tls() -> ssl.SSLContext | None:
        identity = context.certificates.identity
        return identity.tls if identity else None

    def admin_tls() -> ssl.SSLContext | None:
        identity = context.certificates.admin
        # A reload may load a certificate before the restart that moves the listener off loopback.
        return identity.tls if identity and context.config.admin.is_remote else None

    watched = monitoring.documents(context)
    socket = admin_app.control(context, watched)
    servers = [
        Server(app, public, read_timeout, context.clock, public_tls),
        Server(socket, [control], lambda: _LONGEST_OPERATION, context.clock),
    ]
    if admin:
        watching = admin_app.listener(context, watched)
        servers.append(Server(watching, admin, operation_timeout, context.clock, admin_tls))
    return servers


@asynccontextmanager
async def daemon_context(
    config: Config, clock: Clock, notifier: Notifier
) -> AsyncIterator[Context]:
    """Open everything that servers and loops share; close it in reverse, the datastore last."""
    sealing_keys = read_sealing_keys(config)
    sealer = make_sealer(sealing_keys)
    make_socket_directory(config.admin_socket.parent, config.datastore.path.parent)
    become_owner(config.datastore.path.parent)
    certificates = _certificates(config, clock)  # as the owner, which must read them again later
    with notifier.extending_timeout(
        "opening the database: migrating it, building the replay index"
    ):
        opened = open_for_daemon(
            config.datastore.path,
            holder=f"dapd, process {os.getpid()}, listening on {config.server.listen}",
            now=clock.now(),
            on_lost=_end_process,
        )
    try:
        datastore = opened.datastore
        if opened.migrated:
            before = opened.copied_to and str(opened.copied_to)
            _log.info(
                "datastore_migrated",
                path=str(datastore.path),
                applied=opened.migrated,
                before=before,
            )
        held = [sealing_key_id(key) for key in sealing_keys]
        longest_stop = int(config.clock.longest_stop * 1000)
        stored = await datastore.read(safe_clock.load_all)
        safe = SafeClock(clock, stored, longest_stop)
        at = Instant(clock.now(), safe.now())
        await datastore.run(_take_over, sealer, held, at, config)
        if opened.behind:
            with notifier.extending_timeout("quarantining a restored database"):
                await _quarantine(config, opened, at)
        async with (
            DapHttp(
                timeout=config.leader.request_timeout,
                tls=certificates.peer_trust,
                on_request=safe.ask_peer,
            ) as http,
            trio.open_nursery() as nursery,
        ):
            jitter = random.Random().random  # noqa: S311 - spreads retries, guards nothing
            outside = Outside(clock, safe, jitter)
            context = make_context(config, outside, datastore, sealer, http, nursery)
            context.certificates = certificates
            await context.tasks.refresh()
            await context.keyrings.refresh()
            nursery.start_soon(uploads.run, context)
            yield context
            context.uploads.close()
    finally:
        opened.close()


def _certificates(config: Config, clock: Clock) -> Certificates:
    """Read the configured certificates. An expired one is logged but doesn't stop the daemon: there
    is no other one to use, and whatever doesn't depend on it keeps working.
    """
    certificates = read_certificates(config)
    for problem in certificates.invalid_at(clock.now()):
        _log.error("certificate_invalid", error=problem, remedy=RENEW_CERTIFICATE)
    return certificates


def _take_over(tx: Tx, sealer: Sealer, held: list[bytes], at: Instant, config: Config) -> None:
    """Run the process's first transaction: check sealing keys (F2), take over the leases (E2)."""
    check_sealing_keys(tx, held)
    leases.clear_all(tx, at.now)
    rotation.log_moves(ensure_active_key(tx, sealer, at.safe, config))


async def _quarantine(config: Config, opened: Opened, at: Instant) -> None:
    """Quarantine a database that is older than the last commit, before the daemon serves it."""
    tasks = await opened.datastore.run(quarantine, at, config.reports.early_leeway)
    opened.accept_sequence()
    _log.error(
        "restored_database",
        path=str(opened.datastore.path),
        tasks=len(tasks),
        effect="this database is older than the last commit, so reports up to now are dropped and "
        "batches up to now are closed; new reports are accepted",
        remedy=COMPARE_RESTORED,
    )


def _end_process(message: str) -> None:
    """End the process: whether a commit succeeded is unknown until a restart (rule D3)."""
    _log.error(
        "commit_lost",
        error=message,
        remedy="check the disk and restart dapd; nothing that it has confirmed is lost",
    )
    sys.stdout.flush()
    os._exit(70)


async def _until_signalled(config: Config, config_path: Path) -> None:
    stop = trio.Event()
    with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:
        async with trio.open_nursery() as nursery:

            async def wait_for_signal() -> None:
                async for number in signals:
                    if stop.is_set():
                        _log.warning("stopped_at_once", signal=signal.Signals(number).name)
                        os._exit(1)
                    stop.set()

            nursery.start_soon(wait_for_signal)
            await run_daemon(config, stop=stop, config_path=config_path)
            nursery.cancel_scope.cancel()


def run(config_path: Path) -> int:
    """Run the daemon, as ``dapd`` without a subcommand does, and return the exit status."""
    signal.signal(signal.SIGHUP, signal.SIG_IGN)  # means "reload", but not before the start is done
    faulthandler.enable()
    with suppress(OSError, ValueError):  # a core dump would hold keys and input shares
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    try:
        config = load(config_path)
        logs.configure(config.log.level, config.log.format)
        trio.run(_until_signalled, config, config_path)
    except (UsageError, DatastoreError, ExceptionGroup) as error:
        cause = innermost(error)
        if not isinstance(cause, UsageError | DatastoreError):
            raise
        complain(cause)
        return _exit_status(cause)
    return 0


def _exit_status(cause: UsageError | DatastoreError) -> int:
    match cause:
        case NotYet():
            return EXIT_TEMPFAIL
        case UsageError() | UnfitDatastore():
            return EXIT_CONFIG
        case _:
            return EXIT_TEMPFAIL
