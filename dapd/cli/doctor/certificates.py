"""The certificates that the listeners show: whether each is good, for how long, and in use."""

from __future__ import annotations

import time
from datetime import UTC, datetime

from dapd.admin.operation import rfc3339
from dapd.admin.todo import CERTIFICATE_LEFT
from dapd.cli.doctor.daemon import Running
from dapd.cli.doctor.findings import Steps, check, failure, ok, skipped, warning
from dapd.config import Config
from dapd.http import trusting
from dapd.runtime.certificates import Identity, read_identity


@check("certificate")
def public(config: Config, running: Running | None) -> Steps[None]:
    """The public listener's."""
    identity = read_identity(config.server)
    if identity is None:
        yield skipped("[server]", "TLS ends in front of the daemon, if it does")
        return
    yield from _dates(identity)
    others = read_identity(config.admin)
    # The daemon tells of its certificates when the first of them expires.
    first = min(each.not_after for each in (identity, others) if each is not None)
    status = running and running.status
    if status and status.certificate_until != rfc3339(first):
        yield warning(identity.certificate, "the daemon shows another one", "dapd reload")


@check("certificate")
def admin(config: Config) -> Steps[None]:
    """The admin listener's, if it is for others than this machine."""
    identity = read_identity(config.admin)
    if identity is not None:
        yield from _dates(identity)


@check("certificate")
def peer_ca(config: Config) -> Steps[None]:
    """Whether the authorities that peers' certificates are from can be read."""
    authorities = config.leader.peer_ca
    if authorities is not None:
        trusting(authorities)
        yield ok(authorities, "the authorities that peers are believed by")


def _dates(identity: Identity) -> Steps[None]:
    now = time.time_ns() // 1_000_000
    left = identity.not_after - now
    until = f"{datetime.fromtimestamp(identity.not_after // 1000, UTC):%Y-%m-%d %H:%M} UTC"
    if problem := identity.invalid_at(now):
        what, _, remedy = problem.removeprefix(f"{identity.certificate}: ").partition("; ")
        yield failure(identity.certificate, what, f"{remedy}, then `dapd reload`")
    elif left < CERTIFICATE_LEFT.total_seconds() * 1000:
        yield warning(
            identity.certificate, f"it expires on {until}", "renew it, then `dapd reload`"
        )
    else:
        yield ok(identity.certificate, f"fits its key, until {until}")
