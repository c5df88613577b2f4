"""Run all checks, in an order in which earlier findings help to judge later ones."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from dapd.cli.doctor import certificates, daemon, database, files, network, tasks
from dapd.cli.doctor.findings import Finding, Steps, check, skipped


def examine(given: Path | None, *, offline: bool, seconds: float) -> Iterator[Finding]:
    """Yield the findings of all checks. Changes nothing.

    Root checks the files first, then becomes the daemon's user for good. ``seconds`` is how long to
    wait for each answer.
    """
    found = yield from files.configuration(given)
    if found is None:
        yield from _rest("all other checks need the configuration")
        return
    path, config = found
    keys = yield from files.sealing_keys(config)
    yield from files.modes(path, config)
    if not (yield from files.owner(config)):
        yield from _rest("all other checks need the daemon's user")
        return
    running = yield from daemon.daemon(path, config, seconds)
    yield from daemon.unit(path)
    yield from database.file_system(config)
    yield from database.disk(config)
    contents = yield from database.database(config, keys)
    yield from database.backup(config, contents)
    for certificate in (
        certificates.public(config, running),
        certificates.admin(config),
        certificates.peer_ca(config),
    ):
        yield from certificate
    yield from daemon.safe_clock(config, running, contents)
    yield from tasks.tasks(contents)
    if offline:
        yield from _unasked()
    else:
        yield from network.network(config, contents, running, seconds)


@check("rest")
def _rest(why: str) -> Steps[None]:
    yield skipped("", why)


@check("network")
def _unasked() -> Steps[None]:
    yield skipped("", "no requests were sent (--offline)")
