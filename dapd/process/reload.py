"""Reload the configuration while the daemon runs: a file with an error changes nothing.

Each key is either live or needs a restart, as the two tables below say. A reload applies the live
keys and reports the others. Code that reads ``context.config`` each time needs no help; ``_apply``
does the rest. A reload happens on SIGHUP and on ``dapd reload``; once an hour the daemon looks for
renewed certificates. Nothing is interrupted: a connection keeps the certificate it began with.
"""

from __future__ import annotations

import signal
from collections.abc import Iterator
from dataclasses import dataclass

import msgspec
import structlog
import trio

from dapd.commits.hpke_keys import note_max_age
from dapd.config import Config
from dapd.config.loading import load
from dapd.errors import DatastoreError, UsageError
from dapd.runtime.certificates import Certificates, read_certificates
from dapd.runtime.context import Context
from dapd.telemetry import logs

_log = structlog.get_logger()
_EVERY = 3600.0

RESTART = frozenset(
    {
        "server.listen",
        "server.max_body_bytes",
        "datastore.path",
        "datastore.sealing_keys",
        "leader.slots",
        "leader.upload_queue",
        "leader.upload_group_requests",
        "leader.upload_group_bytes",
        "clock.longest_stop",
        "admin.socket",
        "admin.listen",
        "admin.page",
    }
)
"""Keys that need a restart: resources that are opened, or sized, only at start."""

LIVE = frozenset(
    {
        "server.tls_certificate",
        "server.tls_key",
        "server.read_timeout",
        "server.hpke_config_max_age",
        "helper.mode",
        "helper.auto_sync_seconds",
        "helper.sync_wait",
        "helper.poll_hold",
        "helper.retry_after_max",
        "helper.max_running",
        "leader.min_job_size",
        "leader.max_job_size",
        "leader.max_wait",
        "leader.permits_per_peer",
        "leader.request_timeout",
        "leader.peer_ca",
        "leader.retry_min",
        "leader.retry_max",
        "leader.poll_min",
        "leader.poll_max",
        "leader.give_up_after",
        "collection.retry_after",
        "collection.poll_hold",
        "collection.leader_selected_keep",
        "collection.give_up_after",
        "reports.early_leeway",
        "reports.max_replay_ids",
        "gc.interval",
        "gc.ended_task_retention",
        "keys.pending",
        "keys.active",
        "admin.hosts",
        "admin.tls_certificate",
        "admin.tls_key",
        "admin.tokens",
        "disk.min_free_bytes",
        "defaults.helper_mode",
        "defaults.batch_target_size",
        "defaults.report_expiry_age",
        "log.level",
        "log.format",
        "shutdown.grace",
    }
)


@dataclass(frozen=True, slots=True)
class Reloaded:
    """The changed keys, as ``table.key``: those in force now, and those that need a restart."""

    applied: tuple[str, ...]
    restart: tuple[str, ...]


async def run(context: Context) -> None:
    """Handle SIGHUP, and check for renewed certificates each hour, until the daemon drains."""
    async with trio.open_nursery() as nursery:
        if context.config_path is not None:  # the daemon's own process: the signal is for it
            nursery.start_soon(_on_hangup, context)
        while not context.draining.is_set():
            with trio.move_on_after(_EVERY):
                await context.draining.wait()
                break
            await renew(context)
        nursery.cancel_scope.cancel()


async def reload(context: Context) -> Reloaded:
    """Read the file again and apply it, one reload after the other.

    Raises ``UsageError`` if the file has an error, and ``DatastoreError`` if the database can't
    note what the file promises to Clients.
    """
    async with context.reloading:
        return await _reload(context)


async def _reload(context: Context) -> Reloaded:
    try:
        wanted, certificates = _read(context)
        if wanted.server.hpke_config_max_age > context.config.server.hpke_config_max_age:
            await context.run(note_max_age, wanted)  # first: a key is kept for what is noted (F1)
    except (UsageError, DatastoreError) as error:
        _log.error(
            "reload_refused", error=str(error), remedy="fix the error, then run `dapd reload`"
        )
        raise
    running = context.config
    renewed = {key for key in certificates.stamps if _differs(context, certificates, key)}
    changed = {key for key in keys_of(wanted) if value_of(wanted, key) != value_of(running, key)}
    done = Reloaded(tuple(sorted((changed - RESTART) | renewed)), tuple(sorted(changed & RESTART)))
    context.restart_for = done.restart
    await _apply(context, _merged(running, wanted), certificates)
    _log.info("configuration_reloaded", applied=done.applied, restart=done.restart)
    return done


async def renew(context: Context) -> None:
    """Load certificate files that were replaced since they were read; if they are not valid, keep
    the old ones, and try again the next time.
    """
    changed = context.certificates.changed(context.config)
    if not changed:
        return
    try:
        certificates = _valid(context.config, context.now())
    except UsageError as error:
        _log.error(
            "certificate_refused",
            error=str(error),
            effect="the previous certificate stays in use",
            remedy="install a valid certificate, then run `dapd reload`",
        )
        return
    await _apply(context, context.config, certificates)
    _log.info("certificate_renewed", files=changed)


def keys_of(config: Config) -> Iterator[str]:
    """Yield every key, as ``table.key``."""
    for table in config.__struct_fields__:
        for key in getattr(config, table).__struct_fields__:
            yield f"{table}.{key}"


def value_of(config: Config, key: str) -> object:
    """Return the value of a ``table.key``."""
    table, _, name = key.partition(".")
    value: object = getattr(getattr(config, table), name)
    return value


def _read(context: Context) -> tuple[Config, Certificates]:
    if context.config_path is None:
        raise UsageError("this daemon was started without a configuration file; restart it")
    wanted = load(context.config_path)
    return wanted, _valid(wanted, context.now())


def _valid(config: Config, now: int) -> Certificates:
    """Read the certificates. Raises ``UsageError`` if one is not valid at the time ``now`` (ms)."""
    certificates = read_certificates(config)
    for problem in certificates.invalid_at(now):
        raise UsageError(problem)
    return certificates


def _merged(running: Config, wanted: Config) -> Config:
    """Return ``wanted``, with the values of ``running`` for keys that need a restart."""
    kept: dict[str, dict[str, object]] = {}
    for key in RESTART:
        table, _, name = key.partition(".")
        kept.setdefault(table, {})[name] = value_of(running, key)
    tables = {
        table: msgspec.structs.replace(getattr(wanted, table), **values)
        for table, values in kept.items()
    }
    return msgspec.structs.replace(wanted, **tables)


async def _apply(context: Context, config: Config, certificates: Certificates) -> None:
    """Apply a configuration. Nothing here can fail, and no other task can see it half applied: it
    awaits only the closing of idle connections, at the end.
    """
    before, context.config = context.config, config
    trust_changed = _differs(context, certificates, "leader.peer_ca")
    context.certificates = certificates
    context.work.limit = config.helper.max_running
    context.peers.set_permits(config.leader.permits_per_peer)
    context.disk.min_free_bytes = config.disk.min_free_bytes
    context.http.timeout = config.leader.request_timeout
    if config.log != before.log:
        logs.configure(config.log.level, config.log.format)
    if trust_changed:
        await context.http.trust(certificates.peer_trust)
    context.jobs.ring()
    context.chunks.ring()


def _differs(context: Context, certificates: Certificates, key: str) -> bool:
    return certificates.stamps[key] != context.certificates.stamps.get(key)


async def _on_hangup(context: Context) -> None:
    with trio.open_signal_receiver(signal.SIGHUP) as signals:
        async for _ in signals:
            try:
                await reload(context)
            except (UsageError, DatastoreError):
                continue  # logged
