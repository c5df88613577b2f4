"""Check the listeners' certificates: that each is valid, for how long, and in use."""

from __future__ import annotations

from datetime import UTC, datetime

from dapd.admin.operation import rfc3339
from dapd.advice import upkeep
from dapd.cli.doctor.daemon import Running
from dapd.cli.doctor.findings import Steps, check, failure, ok, skipped, warning
from dapd.config import Config
from dapd.http import trusting
from dapd.runtime.certificates import Identity, read_identity
from dapd.wording import moment


@check("certificate")
def public(config: Config, running: Running | None) -> Steps[None]:
    """Check the public listener's certificate."""
    identity = read_identity(config.server)
    if identity is None:
        yield skipped("[server]", "has no certificate: TLS, if any, ends at a proxy")
        return
    yield from _dates(identity)
    others = read_identity(config.admin)
    # Of its certificates the daemon only says when the first one expires.
    first = min(each.not_after for each in (identity, others) if each is not None)
    status = running and running.status
    if status and status.certificate_until != rfc3339(first):
        yield warning(identity.certificate, "the daemon still uses an older one", "`dapd reload`")


@check("certificate")
def admin(config: Config) -> Steps[None]:
    """Check the admin listener's certificate, if other machines can reach it."""
    identity = read_identity(config.admin)
    if identity is not None:
        yield from _dates(identity)


@check("certificate")
def peer_ca(config: Config) -> Steps[None]:
    """Check that the authorities of peers' certificates can be read."""
    authorities = config.leader.peer_ca
    if authorities is not None:
        trusting(authorities)
        yield ok(authorities, "has the authorities that the Leader trusts")


def _dates(identity: Identity) -> Steps[None]:
    now, expires = datetime.now(UTC), rfc3339(identity.not_after)
    advice = upkeep.certificate(expires, now)
    if now < (begins := rfc3339(identity.not_before)):
        what = f"is not valid before {moment(begins)}"
        yield failure(identity.certificate, what, "check this machine's clock")
    elif advice is not None:
        level = failure if expires <= now else warning
        yield level(identity.certificate, advice.what, advice.remedy)
    else:
        yield ok(identity.certificate, f"fits its key, valid until {moment(expires)}")
